"""Closed-form repair: the surviving weights are refitted so that each layer gives what it gave before.

Layer after layer, in forward order, ridge least squares maps the *pruned* network's own inputs to
the *original* network's outputs (He et al., "Channel Pruning", ICCV 2017, eq. 4, made sequential).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import MintError
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.im2col import (
    input_rows,
    output_positions,
    output_rows,
    sample_positions,
    set_weight_matrix,
    weight_matrix,
)
from mint_compress.nn.io import concatenate, count, forward, of_batch, select, split, tensors_in
from mint_compress.nn.layers import WEIGHTED, channel_groups, in_channels, taps
from mint_compress.nn.moments import MAX_COLUMNS, rows_wanted
from mint_compress.progress import Progress
from mint_compress.repair.adjacency import Shortcut, Topology, trace
from mint_compress.repair.lockstep import Pass, Point, lockstep
from mint_compress.repair.ridge import RidgeFit
from mint_compress.surgery.pruning_plan import PruningPlan

log = logging.getLogger(__name__)

BATCH = 64
LEAST_CHUNKS = 4
"""Batches that a layer which is called several times is refitted from, at least."""


@dataclass(frozen=True)
class Repair:
    """What the repair did to one layer.

    Attributes
    ----------
    layer
        Qualified name.
    before, after
        Share of the output variance that was missing on held-out images, without and with the refit.
    ridge
        The ridge chosen; None where no refit was better than leaving the layer as it was.
    """

    layer: str
    before: float
    after: float
    ridge: float | None


def compensate_(
    model: nn.Module,
    original: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    *,
    everywhere: bool = True,
    drift: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Repair]:
    """Refit the weights of the pruned ``model``, in place, so that it imitates ``original``.

    No parameter is added: an intercept goes into an existing bias or the BatchNorm that follows. A layer
    that is called several times is fitted to all of its calls at once.

    Parameters
    ----------
    model
        The network after :func:`mint_compress.surgery.pruning.prune_`.
    original
        The network before; it is not changed.
    plan
        What was removed.
    batches
        Calibration inputs as for :func:`calibrate`; labels are not looked at.
    everywhere
        Refit every layer from the first pruned one on, not just those that lost inputs: the others
        then undo some of the drift that reaches them.
    drift
        Where a shortcut is added to a layer's output, let the layer also make up for what the
        shortcut has lost on its way.
    seed
        Draws the pixels used.

    Returns
    -------
    list of Repair
        In forward order.
    """
    given = concatenate([of_batch(b) for b in batches])
    apart = _can_run_side_by_side(original, given)
    # passes that would meet in what the network keeps for itself go as one
    images, chunks = count(given), split(given, BATCH if apart else count(given))
    neighbours = trace(model, (select(given, slice(1)), None))
    layers = _layers_to_repair(model, neighbours, plan, everywhere)
    both = model, original
    ours, theirs = (dict(m.named_modules()) for m in both)
    shortcuts = {n: s for n, s in neighbours.shortcuts.items() if n in layers} if drift else {}
    removed = {c.layer: set(c.removed) for c in plan.cuts if c.side != "in"}
    generator = torch.Generator().manual_seed(seed)
    repairs: dict[str, Repair | None] = {}
    calls = [name for name in neighbours.calls if name in layers]
    with evaluating(model), evaluating(original), _side_by_side(both, layers, chunks, shortcuts) as pairs:
        for name in calls:
            _advance(pairs, name)
            if name in repairs:
                continue  # a later call, which has the refitted weights
            layer, repairs[name] = layers[name], None
            if _same_places(layer, *pairs[0]):
                norm = ours[neighbours.norms[name]] if name in neighbours.norms else None
                kept = _kept(theirs[name], removed.get(name, set()))
                target = _Target(layer, norm, kept, name in shortcuts)
                times = calls.count(name)
                if times > 1 and not apart:
                    continue  # its later calls are seen by passes of their own
                fit = _Fit(target, images, times, pairs, generator)
                if times == 1:
                    fit.add(name, pairs)
                else:
                    _add_all_calls(fit, name, times, both, chunks)
                repairs[name] = fit.write(name)
            if progress:
                progress("repair", len(repairs), len(layers))
    return [repair for repair in repairs.values() if repair is not None]


def _can_run_side_by_side(model: nn.Module, given: Any) -> bool:
    """Whether two passes that take turns give what they give one after the other.

    They do not where ``forward`` leaves tensors on the network and reads them later, as some skip
    connections are made: one pass then reads what another has left.
    """
    few = [(select(given, rows), None) for rows in (slice(0, 1), slice(1, 3))]
    if count(few[1][0]) == 0:
        return True
    layers = {n: m for n, m in model.named_modules() if isinstance(m, WEIGHTED)}
    with evaluating(model), torch.no_grad():
        wanted = [[t.clone() for t in tensors_in(forward(model, batch))] for batch in few]
        try:
            with lockstep(model, layers, few, after=False) as passes:
                while any([one.advance() is not None for one in passes]):
                    pass
                found = [list(tensors_in(one.result)) for one in passes]
        except Exception:  # whatever a user's forward raises on what another pass has left
            return False
    return all(
        a.shape == b.shape and (not a.is_floating_point() or torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True))
        for one, other in zip(wanted, found, strict=True)
        for a, b in zip(one, other, strict=True)
    )


Pairs = list[tuple[Pass, Pass]]
"""For every batch, a pass through the pruned network and one through the original."""


@contextmanager
def _side_by_side(
    models: tuple[nn.Module, nn.Module],
    layers: Mapping[str, nn.Module],
    chunks: Sequence[Any],
    shortcuts: Mapping[str, Shortcut],
) -> Iterator[Pairs]:
    """Passes that halt before each of the layers in the pruned network, and after it in the original."""
    model, original = models
    ours, theirs = (dict(m.named_modules()) for m in models)
    same = {n: theirs[n] for n in layers}
    with (
        lockstep(model, layers, chunks, after=False, remember=_points(shortcuts, ours)) as passes,
        lockstep(original, same, chunks, after=True, remember=_points(shortcuts, theirs)) as references,
    ):
        yield list(zip(passes, references, strict=True))


def _advance(pairs: Pairs, name: str) -> None:
    """Let all passes go on to the layer of that name."""
    if {p.advance() for p in (*(m for m, _ in pairs), *(r for _, r in pairs))} != {name}:
        raise MintError(f"The forward pass calls its layers in changing order (at {name}).")


def _add_all_calls(
    fit: _Fit, name: str, times: int, models: tuple[nn.Module, nn.Module], chunks: Sequence[Any]
) -> None:
    """What later calls of a layer bring is known only after going through the network."""
    with _side_by_side(models, {name: fit.layer}, chunks[: fit.chunks], {}) as others:
        for _ in range(times):
            _advance(others, name)
            fit.add(name, others)


class _Fit:
    """The refit of one layer, from the passes that have halted at each of its calls."""

    def __init__(
        self, target: _Target, images: int, calls: int, pairs: Pairs, generator: torch.Generator
    ) -> None:
        layer = self.layer = target.layer
        self.target, self.generator, self.chunks = target, generator, len(pairs)
        columns = in_channels(layer) * taps(layer) // channel_groups(layer)
        wanted, places = min(columns, MAX_COLUMNS), output_positions(layer, pairs[0][1].halted_output())
        if calls > 1:
            # each further network-wide pass costs, and of a layer with many places few images say enough
            enough = -(-rows_wanted(wanted, places * calls) // BATCH)
            self.chunks = max(LEAST_CHUNKS, enough)
            images = min(images, self.chunks * BATCH)
        self.wanted = rows_wanted(wanted, images * calls)
        rows = min(self.wanted, places) * images * calls
        intercept = target.norm is not None or layer.bias is not None
        self.fit = RidgeFit.of(columns, rows=rows, intercept=intercept)

    def add(self, name: str, pairs: Pairs) -> None:
        """Take what the passes have brought to the layer, and what it should make of it."""
        for mine, reference in pairs:
            assert mine.inputs is not None
            goal = self.target.of(name, mine, reference)
            positions = sample_positions(output_positions(self.layer, goal), self.wanted, self.generator)
            x = input_rows(self.layer, mine.inputs, goal, positions)
            self.fit.add(x, output_rows(self.layer, goal, positions), mine.inputs.shape[0])

    def write(self, name: str) -> Repair:
        """Put what came out into the layer, and the intercept where there is a place for it."""
        chosen = self.fit.choose(weight_matrix(self.layer))
        set_weight_matrix(self.layer, chosen.weight)
        if chosen.intercept is not None:
            _write_intercept(self.layer, self.target.norm, chosen.intercept.flatten())
        return Repair(name, chosen.before, chosen.after, chosen.ridge)


def _same_places(layer: nn.Module, mine: Pass, reference: Pass) -> bool:
    """Whether the original applies the layer to as many places; not where places are channels that went."""
    assert mine.inputs is not None and reference.inputs is not None
    channels = -1 if isinstance(layer, nn.Linear) else 1
    one, other = list(mine.inputs.shape), list(reference.inputs.shape)
    one[channels] = other[channels] = 0
    return one == other


def _points(shortcuts: Mapping[str, Shortcut], modules: Mapping[str, nn.Module]) -> dict[str, Point]:
    return {n: Point(modules[s.module], s.side) for n, s in shortcuts.items()}


def _kept(layer: nn.Module, removed: set[int]) -> Tensor:
    width = layer.weight.shape[0]  # type: ignore[union-attr, index]
    return torch.tensor([c for c in range(width) if c not in removed])


def _layers_to_repair(
    model: nn.Module, neighbours: Topology, plan: PruningPlan, everywhere: bool
) -> dict[str, nn.Module]:
    """Layers from the first that lost inputs on, in the order of their first calls."""
    modules, order = dict(model.named_modules()), list(dict.fromkeys(neighbours.calls))
    starved = {c.layer for c in plan.cuts if c.side == "in"}
    first = next((i for i, n in enumerate(order) if n in starved), len(order))
    chosen = [n for n in order[first:] if (everywhere or n in starved) and n in neighbours.simple]
    return {n: modules[n] for n in chosen if not getattr(modules[n], "transposed", False)}


@dataclass(frozen=True, eq=False)
class _Target:
    """What a layer of the pruned network should give."""

    layer: nn.Module
    norm: nn.Module | None
    kept: Tensor
    drifts: bool

    def of(self, name: str, mine: Pass, reference: Pass) -> Tensor:
        """The original's output; where a shortcut is added, also what that has lost on its way."""
        output = self._kept_of(reference.halted_output())
        if not self.drifts:
            return output
        drift = self._kept_of(reference.remembered.pop(name)) - mine.remembered.pop(name)
        return output + drift * self._scale(drift)

    def _kept_of(self, output: Tensor) -> Tensor:
        dim = -1 if isinstance(self.layer, nn.Linear) else 1
        if len(self.kept) == output.shape[dim]:
            return output
        return output.index_select(dim, self.kept.to(output.device))

    def _scale(self, drift: Tensor) -> Tensor:
        """How much the layer must give for the sum behind its BatchNorm to change by one."""
        if self.norm is None:
            return drift.new_ones(())
        norm: Any = self.norm
        gamma: Tensor | None = norm.weight
        scale: Tensor = (norm.running_var + norm.eps).sqrt()
        if gamma is not None:
            strong = gamma.abs() > 1e-2 * gamma.abs().max()
            scale = torch.where(strong, scale / gamma, 0.0)  # a channel that is hardly used stays as it is
        return scale.detach().reshape(-1, *(1,) * (drift.ndim - 2))


def _write_intercept(layer: nn.Module, norm: nn.Module | None, intercept: Tensor) -> None:
    bias = layer.bias
    with torch.no_grad():
        if bias is not None:
            bias.copy_(intercept)  # type: ignore[operator]
        elif norm is not None:
            # BatchNorm subtracts its running mean, so that is where a constant can go
            norm.running_mean.sub_(intercept.to(norm.running_mean))  # type: ignore[union-attr, operator, arg-type]
