"""Closed-form repair: the surviving weights are refitted so that each layer gives what it gave before.

Layer after layer, in forward order, ridge least squares maps the *pruned* network's own inputs to
the *original* network's outputs (He et al., "Channel Pruning", ICCV 2017, eq. 4, made sequential).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.calibration import MAX_COLUMNS, MomentSum, model_inputs, rows_wanted
from mint_compress.counting import Progress, evaluating
from mint_compress.errors import MintError
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
from mint_compress.topology import Shortcut, Topology, trace

log = logging.getLogger(__name__)

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried for every layer, as shares of the mean input variance; the best on held-out images is used."""
HELD_OUT = 4
"""Every so manieth image is held out from the fit while the ridge is chosen."""
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
        Calibration inputs; labels are not looked at.
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
    images = torch.cat([model_inputs(b)[0] for b in batches])
    chunks = list(images.split(BATCH))
    neighbours = trace(model, chunks[0][:1])
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
            norm = ours[neighbours.norms[name]] if name in neighbours.norms else None
            fit = _Fit(layer, len(images), norm is not None or layer.bias is not None)
            target = _Target(layer, norm, _kept(theirs[name], removed.get(name, set())), name in shortcuts)
            for mine, reference in zip(passes, references, strict=True):
                fit.add_pass(mine, target.of(name, mine, reference), generator)
            repairs.append(fit.apply_(name, norm))
            if progress:
                progress("repair", done + 1, len(layers))
    return repairs


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
        assert reference.output is not None
        output = self._kept_of(reference.output)
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


class _Fit:
    """Ridge regression of one layer, shrunk toward the weights it has."""

    def __init__(self, layer: nn.Module, images: int, intercept: bool) -> None:
        self.layer, self.intercept = layer, intercept
        self.columns = in_channels(layer) * taps(layer) // channel_groups(layer)
        self.positions = rows_wanted(min(self.columns, MAX_COLUMNS), images)
        self.fitted, self.held = MomentSum(), MomentSum()
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_pass(self, mine: Pass, target: Tensor, generator: torch.Generator) -> None:
        """Add the inputs that a pass has brought to the layer, and the outputs it should give."""
        assert mine.inputs is not None
        images = mine.inputs.shape[0]
        positions = sample_positions(output_positions(self.layer, target), self.positions, generator)
        x = input_rows(self.layer, mine.inputs, target, positions)
        y = output_rows(self.layer, target, positions)
        both = torch.cat([x, y], 2).double().unflatten(1, (images, -1))
        held = torch.arange(images, device=x.device) % HELD_OUT == HELD_OUT - 1
        for total, which in ((self.fitted, ~held), (self.held, held)):
            if bool(which.any()):
                total.add(both[:, which].flatten(1, 2))

    def apply_(self, name: str, norm: nn.Module | None) -> Repair:
        """Choose the ridge on held-out rows, refit on all, write weight and intercept."""
        old = weight_matrix(self.layer)
        fitted = _Normal.of(self.fitted, self.columns, self.intercept)
        held = _Normal.of(self.held, self.columns, self.intercept) if self.held.rows else fitted
        nothing = held.error(old)
        errors = {ridge: held.error(fitted.solve(ridge, old)) for ridge in RIDGES}
        ridge = min(errors, key=lambda r: errors[r])
        scale = max(held.variance, 1e-30)
        before = nothing / scale
        if not errors[ridge] < nothing:
            ridge_used, new = None, old
        else:
            both = fitted.joined(held) if self.held.rows else fitted
            ridge_used, new = ridge, both.solve(ridge, old)
        whole = fitted.joined(held) if self.held.rows else fitted
        set_weight_matrix(self.layer, new)
        if self.intercept:
            _write_intercept(self.layer, norm, (whole.mean_y - (whole.mean_x[:, None] @ new)[:, 0]).flatten())
        return Repair(name, before, min(errors[ridge], nothing) / scale, ridge_used)


@dataclass(frozen=True, eq=False)
class _Normal:
    """Normal equations: means and (centred) products of inputs and targets, per channel group."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    mean_x: Tensor
    mean_y: Tensor
    rows: int

    @staticmethod
    def of(total: MomentSum, columns: int, intercept: bool) -> _Normal:
        mean, moments = total.result()
        if not intercept:
            moments = moments + mean[:, :, None] * mean[:, None, :]
        return _Normal(
            moments[:, :columns, :columns],
            moments[:, :columns, columns:],
            moments[:, columns:, columns:].diagonal(dim1=1, dim2=2),
            mean[:, :columns],
            mean[:, columns:],
            total.rows,
        )

    def joined(self, other: _Normal) -> _Normal:
        a = self.rows / (self.rows + other.rows)
        b = 1 - a
        dx, dy = self.mean_x - other.mean_x, self.mean_y - other.mean_y
        return _Normal(
            a * self.xx + b * other.xx + a * b * dx[:, :, None] * dx[:, None, :],
            a * self.xy + b * other.xy + a * b * dx[:, :, None] * dy[:, None, :],
            a * self.yy + b * other.yy + a * b * dy * dy,
            a * self.mean_x + b * other.mean_x,
            a * self.mean_y + b * other.mean_y,
            self.rows + other.rows,
        )

    @property
    def variance(self) -> float:
        return float(self.yy.sum())

    def solve(self, ridge: float, prior: Tensor) -> Tensor:
        """Weights ``(groups, columns, outputs)`` that minimise the error plus ridge |W - prior|^2."""
        scale = self.xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        ridged = self.xx.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(ridge * scale[:, None])
        step = torch.cholesky_solve(self.xy - self.xx @ prior, torch.linalg.cholesky(ridged))
        return prior + step

    def error(self, weight: Tensor) -> float:
        """Mean squared error, summed over outputs."""
        quadratic = ((self.xx @ weight - 2 * self.xy) * weight).sum()
        return float(self.yy.sum() + quadratic)


def _write_intercept(layer: nn.Module, norm: nn.Module | None, intercept: Tensor) -> None:
    bias = layer.bias
    with torch.no_grad():
        if bias is not None:
            bias.copy_(intercept)  # type: ignore[operator]
        elif norm is not None:
            # BatchNorm subtracts its running mean, so that is where a constant can go
            norm.running_mean.sub_(intercept.to(norm.running_mean))  # type: ignore[union-attr, operator, arg-type]
