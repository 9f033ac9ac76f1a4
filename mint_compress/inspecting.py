"""What could be pruned in a network: its channel groups, why some stay, and how far ``--ratio`` can go."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mint_compress.checkpoints.builders import input_shape_of
from mint_compress.checkpoints.opening import open_model
from mint_compress.errors import MintError
from mint_compress.graph.costs import LayerShape
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.input_groups import inputs_read
from mint_compress.nn.counting import parameters
from mint_compress.planning.search import most_removed
from mint_compress.preflight import check_model
from mint_compress.progress import Progress
from mint_compress.reporting.plain_data import plain
from mint_compress.reporting.records import LeftAlone
from mint_compress.reporting.text import as_text, figures_table, page
from mint_compress.settings import Settings
from mint_compress.surgery.pruning_plan import PruningPlan

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

INSPECTION_FORMAT = 1
"""Version of the JSON; it rises when a key changes its meaning or goes away."""


@dataclass(frozen=True)
class InspectedGroup:
    """One channel group: positions that can only go together.

    Attributes
    ----------
    name
        Its first producer.
    width, least
        Positions it has, and the fewest it may keep; the same where it may not be pruned.
    parameters
        Those that belong to its channels in all layers. A weight between two groups counts for both.
    producers, consumers
        Layers that make the channels, and layers that read them.
    prunable, reason
        Whether positions may go, and if not, why not.
    """

    name: str
    width: int
    least: int
    parameters: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool
    reason: str | None


@dataclass(frozen=True)
class Inspection:
    """What could be pruned in one network; the fields are the keys of the JSON, after ``format``.

    Attributes
    ----------
    model
        Path, or name of the class.
    input_shape
        Of one sample, without the batch.
    parameters, macs
        Of the whole network; MACs are of one sample.
    upper_limit, round_to
        See :class:`Budget`.
    most_ratio, most_macs_ratio
        Largest share of the parameters, and of the MACs, that can go within these bounds; 0.0: nothing can.
    groups
        In the order of the network's modules.
    notes
        What was assumed, one sentence each.
    """

    model: str
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    upper_limit: float
    round_to: int | None
    most_ratio: float
    most_macs_ratio: float
    groups: tuple[InspectedGroup, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, in a fixed order."""
        return {"format": INSPECTION_FORMAT, **plain(self)}

    def to_json(self) -> str:
        """``to_dict`` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(self.groups) if self.groups else None
        left_alone = [LeftAlone(g.name, g.reason or "") for g in self.groups if not g.prunable]
        yield from page(self.notes, table, "Not prunable:", left_alone, self._summary())

    def _summary(self) -> Iterator[tuple[str, str]]:
        prunable = sum(g.prunable for g in self.groups)
        yield "Parameters", f"{self.parameters:,}"
        yield "MACs", f"{self.macs:,} for one input of {'x'.join(map(str, self.input_shape))}"
        yield "Groups", f"{prunable} of {len(self.groups)} prunable"
        step = "" if self.round_to is None else f" --round-to {self.round_to}"
        bounds = f"with --upper-limit {self.upper_limit:g}{step}"
        # rounded down: the ratio printed can be asked for
        most, macs = (math.floor(1000 * share) / 1000 for share in (self.most_ratio, self.most_macs_ratio))
        if not most:
            yield "Reachable", f"nothing can go {bounds}"
            return
        yield "Reachable", f"at most --ratio {most:g} or --macs-ratio {macs:g},"
        yield "", bounds


def inspect_model(
    model: nn.Module | str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Inspection:
    """Find out what could be pruned, without data, and without pruning anything.

    Parameters
    ----------
    model
        A module, which is not changed, or the path of a checkpoint, pruned before or not.
    settings, options
        As for :func:`mint_compress.compress`; those of the model, of its layers and the bounds of the budget
        count.
    progress
        Called as (stage, done, total).

    Returns
    -------
    Inspection
        Every channel group, and the largest ratio that ``compress`` accepts.

    Raises
    ------
    MintError
        Bad input: no such file, an unknown architecture, a network that cannot be traced.
    """
    settings = (settings or Settings()).replace(**options)
    check_model(model)
    budget, layers = settings.budget, settings.layers
    tell = progress or (lambda *_: None)
    tell("read the model", 0, 1)
    module, notes = open_model(model, settings.model)
    name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    tell("read the model", 1, 1)
    shape = settings.model.input_shape or input_shape_of(module)
    if shape is None:
        raise MintError("The size of the input is not known. Give --input-shape, for example 3,224,224.")
    example = torch.zeros(1, *shape)
    found = find_groups(
        module, example, ignore=layers.ignore, prune_inputs=layers.prune_inputs, progress=progress
    )
    most = most_removed(found, budget)
    return Inspection(
        model=name,
        input_shape=tuple(shape),
        parameters=parameters(module),
        macs=found[0].network.macs if found else 0,
        upper_limit=budget.upper_limit,
        round_to=budget.round_to,
        most_ratio=most.removed if most else 0.0,
        most_macs_ratio=1 - most.macs[1] / most.macs[0] if most and most.macs[0] else 0.0,
        groups=inspected(found, most),
        notes=notes + inputs_read(module, module, found),
    )


def inspected(groups: Sequence[ChannelGroup], most: PruningPlan | None) -> tuple[InspectedGroup, ...]:
    """What there is to say about each group, given the plan that removes all that may go."""
    order = {name: i for i, name in enumerate(groups[0].network.layers if groups else ())}
    least = {cut.group: len(cut.kept) for cut in most.groups} if most else {}
    return tuple(
        InspectedGroup(
            name=g.name,
            width=g.width,
            least=least[g.name] if g.prunable else g.width,
            parameters=_parameters_of(g),
            producers=g.producers,
            consumers=tuple(m.layer for m in g.consumers),
            prunable=g.prunable,
            reason=g.reason,
        )
        for g in sorted(groups, key=lambda g: order.get(g.name, len(order)))
    )


def _parameters_of(group: ChannelGroup) -> int:
    """Parameters that belong to the group's channels: rows and columns of weights, biases, norms."""
    layers = group.network.layers
    if not group.members:  # a layer that was not traced
        return layers.get(group.name, LayerShape()).parameters
    channels: dict[tuple[str, bool], set[int]] = {}
    for member in group.members:
        channels.setdefault((member.layer, member.side == "in"), set()).update(member.channels.tolist())
    total = 0
    for name in {name for name, _ in channels}:
        layer = layers.get(name, LayerShape())  # a normalisation without parameters
        inputs, outputs = (len(channels.get((name, inside), ())) for inside in (True, False))
        # a weight between two channels of the group is counted once
        whole = max(layer.inputs, 1) * max(layer.outputs, 1)
        others = (max(layer.inputs, 1) - inputs) * (max(layer.outputs, 1) - outputs)
        total += layer.weights - layer.weights * others // whole + layer.per_output * outputs
    return total


def _table(groups: Sequence[InspectedGroup]) -> Table:
    rows = []
    for group in groups:
        producers = (group.name, *(p for p in group.producers if p != group.name))
        least = f"{group.least:,}" if group.prunable else "-"
        counts = [f"{group.width:,}", least, f"{group.parameters:,}"]
        rows.append(([_few(producers), _few(group.consumers)], counts))
    return figures_table(["Channels of", "read by"], ["Width", "at least", "Parameters"], rows)


def _few(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)
