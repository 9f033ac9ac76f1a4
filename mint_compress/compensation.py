"""Closed-form repair: the surviving weights are refitted so that each layer gives what it gave before.

Layer after layer, in forward order, ridge least squares maps the *pruned* network's own inputs to
the *original* network's outputs (He et al., "Channel Pruning", ICCV 2017, eq. 4, made sequential).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.calibration import MAX_COLUMNS, rows_wanted
from mint_compress.counting import Progress, evaluating
from mint_compress.errors import MintError
from mint_compress.inputs import concatenate, count, of_batch, select, split
from mint_compress.lockstep import Pass, Point, lockstep
from mint_compress.patches import (
    channel_groups,
    in_channels,
    input_rows,
    output_positions,
    output_rows,
    sample_positions,
    set_weight_matrix,
    taps,
    weight_matrix,
)
from mint_compress.planning import PruningPlan
from mint_compress.ridge import Chosen, RidgeFit
from mint_compress.topology import Shortcut, Topology, trace

log = logging.getLogger(__name__)

BATCH = 64


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

    No parameter is added: an intercept goes into an existing bias or the BatchNorm that follows.

    Parameters
    ----------
    model
        The network after :func:`mint_compress.pruning.prune_`.
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
    images, chunks = count(given), split(given, BATCH)
    neighbours = trace(model, (select(given, slice(1)), None))
    layers = _layers_to_repair(model, neighbours, plan, everywhere)
    ours, theirs = dict(model.named_modules()), dict(original.named_modules())
    shortcuts = {n: s for n, s in neighbours.shortcuts.items() if n in layers} if drift else {}
    removed = {c.layer: set(c.removed) for c in plan.cuts if c.side != "in"}
    generator = torch.Generator().manual_seed(seed)
    repairs = []
    with (
        evaluating(model),
        evaluating(original),
        lockstep(model, layers, chunks, after=False, remember=_points(shortcuts, ours)) as passes,
        lockstep(
            original,
            {n: theirs[n] for n in layers},
            chunks,
            after=True,
            remember=_points(shortcuts, theirs),
        ) as references,
    ):
        for done, (name, layer) in enumerate(layers.items()):
            reached = {p.advance() for p in (*passes, *references)}
            if reached != {name}:
                raise MintError(f"The forward pass calls its layers in changing order (at {name}).")
            if _same_places(layer, passes[0], references[0]):
                norm = ours[neighbours.norms[name]] if name in neighbours.norms else None
                kept = _kept(theirs[name], removed.get(name, set()))
                target = _Target(layer, norm, kept, name in shortcuts)
                repairs.append(_refit(name, target, passes, references, images, generator))
            if progress:
                progress("repair", done + 1, len(layers))
    return repairs


def _refit(
    name: str,
    target: _Target,
    passes: Sequence[Pass],
    references: Sequence[Pass],
    images: int,
    generator: torch.Generator,
) -> Repair:
    """Fit the layer that all passes have halted at, and write what came out into it."""
    layer, norm = target.layer, target.norm
    columns = in_channels(layer) * taps(layer) // channel_groups(layer)
    wanted = rows_wanted(min(columns, MAX_COLUMNS), images)
    places = min(wanted, output_positions(layer, references[0].halted_output()))
    intercept = norm is not None or layer.bias is not None
    fit = RidgeFit.of(columns, rows=places * images, intercept=intercept)
    for mine, reference in zip(passes, references, strict=True):
        goal = target.of(name, mine, reference)
        positions = sample_positions(output_positions(layer, goal), wanted, generator)
        _add_pass(fit, layer, mine, goal, positions)
    chosen = fit.choose(weight_matrix(layer))
    _write(layer, norm, chosen)
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
    """Layers that are called once, from the first that lost inputs on, in forward order."""
    modules, order = dict(model.named_modules()), neighbours.calls
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


def _add_pass(fit: RidgeFit, layer: nn.Module, mine: Pass, target: Tensor, positions: Tensor) -> None:
    """Give the fit what a pass has brought to the layer, and what the layer should make of it."""
    assert mine.inputs is not None
    x = input_rows(layer, mine.inputs, target, positions)
    fit.add(x, output_rows(layer, target, positions), mine.inputs.shape[0])


def _write(layer: nn.Module, norm: nn.Module | None, chosen: Chosen) -> None:
    """Put the refitted weights, and the intercept if there is a place for it, into the layer."""
    set_weight_matrix(layer, chosen.weight)
    if chosen.intercept is not None:
        _write_intercept(layer, norm, chosen.intercept.flatten())


def _write_intercept(layer: nn.Module, norm: nn.Module | None, intercept: Tensor) -> None:
    bias = layer.bias
    with torch.no_grad():
        if bias is not None:
            bias.copy_(intercept)  # type: ignore[operator]
        elif norm is not None:
            # BatchNorm subtracts its running mean, so that is where a constant can go
            norm.running_mean.sub_(intercept.to(norm.running_mean))  # type: ignore[union-attr, operator, arg-type]
