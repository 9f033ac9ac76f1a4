"""Ridge regression that is shrunk toward the weights a layer has, its ridge chosen on held-out images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.nn.moments import MAX_COLUMNS, WIDE, MomentSum

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried for every layer, as shares of the mean input variance; the best on held-out images is used."""
HELD_OUT = 4
"""Every so manieth image is held out from the fit while the ridge is chosen."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The outcome of a fit.

    Attributes
    ----------
    weight, intercept
        ``(groups, columns, outputs)`` and ``(groups, outputs)`` float64; no intercept was asked for: None.
    ridge
        None where no refit was better than the prior.
    before, after
        Share of the targets' variance that is missed on held-out rows by the prior, and by the choice.
    """

    weight: Tensor
    intercept: Tensor | None
    ridge: float | None
    before: float
    after: float


class RidgeFit(ABC):
    """Minimises ``|y - x W|^2 / n + ridge * scale * |W - prior|^2``; scale is the mean variance of x."""

    def __init__(self, columns: int, *, intercept: bool) -> None:
        self.columns, self.intercept = columns, intercept

    @staticmethod
    def of(columns: int, *, rows: int, intercept: bool) -> RidgeFit:
        """The smaller form: products of columns, or, where there are fewer rows than columns, of rows."""
        primal = columns <= MAX_COLUMNS and columns <= rows
        return (_Primal if primal else _Dual)(columns, intercept=intercept)

    def add(self, x: Tensor, y: Tensor, images: int) -> None:
        """Add inputs ``(groups, n, columns)`` and targets ``(groups, n, outputs)`` of some images."""
        both = torch.cat([x, y], 2).unflatten(1, (images, -1))
        held = torch.arange(images, device=x.device) % HELD_OUT == HELD_OUT - 1
        for out, which in ((False, ~held), (True, held)):
            if bool(which.any()):
                self._take(both[:, which].flatten(1, 2), out)

    def choose(self, prior: Tensor) -> Chosen:
        """Try every ridge on the held-out rows; refit with the best on all rows.

        Parameters
        ----------
        prior
            ``(groups, columns, outputs)`` float64 weights.
        """
        nothing, errors, variance = self._held_out_errors(prior)
        ridge = min(errors, key=lambda r: errors[r])
        better = errors[ridge] < nothing
        weight = self._solve(ridge, prior) if better else prior
        scale = max(variance, 1e-30)
        intercept = self._intercept(weight) if self.intercept else None
        after = min(errors[ridge], nothing)
        return Chosen(weight, intercept, ridge if better else None, nothing / scale, after / scale)

    @abstractmethod
    def _take(self, both: Tensor, held_out: bool) -> None:
        """Keep ``(groups, n, columns + outputs)`` rows."""

    @abstractmethod
    def _held_out_errors(self, prior: Tensor) -> tuple[float, dict[float, float], float]:
        """Error of the prior, error by ridge, variance of the targets; all on held-out rows."""

    @abstractmethod
    def _solve(self, ridge: float, prior: Tensor) -> Tensor:
        """Weights fitted on all rows."""

    @abstractmethod
    def _intercept(self, weight: Tensor) -> Tensor:
        """What makes the means of all rows agree."""


class _Primal(RidgeFit):
    """Normal equations, from running sums: memory does not grow with the rows."""

    def __init__(self, columns: int, *, intercept: bool) -> None:
        super().__init__(columns, intercept=intercept)
        self._sums = (MomentSum(), MomentSum())
        self._all: _Normal | None = None

    def _take(self, both: Tensor, held_out: bool) -> None:
        self._sums[held_out].add(both.double() if self.columns <= WIDE else both)

    def _held_out_errors(self, prior: Tensor) -> tuple[float, dict[float, float], float]:
        fitted = _Normal.of(self._sums[0], self.columns, self.intercept)
        held = _Normal.of(self._sums[1], self.columns, self.intercept) if self._sums[1].rows else fitted
        self._all = fitted.joined(held) if self._sums[1].rows else fitted
        errors = {}
        for ridge in RIDGES:
            # too small a ridge for columns that depend on each other
            with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                errors[ridge] = held.error(fitted.solve(ridge, prior))
        return held.error(prior), errors, float(held.yy.sum())

    def _solve(self, ridge: float, prior: Tensor) -> Tensor:
        assert self._all is not None
        return self._all.solve(ridge, prior)

    def _intercept(self, weight: Tensor) -> Tensor:
        assert self._all is not None
        return self._all.mean_y - (self._all.mean_x[:, None] @ weight)[:, 0]


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
        if not intercept:  # products as they are, about zero
            moments = moments + mean[:, :, None] * mean[:, None, :]
            mean = torch.zeros_like(mean)
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

    def solve(self, ridge: float, prior: Tensor) -> Tensor:
        scale = self.xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        ridged = self.xx.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(ridge * scale[:, None])
        return prior + torch.cholesky_solve(self.xy - self.xx @ prior, torch.linalg.cholesky(ridged))

    def error(self, weight: Tensor) -> float:
        """Mean squared error, summed over outputs."""
        quadratic = ((self.xx @ weight - 2 * self.xy) * weight).sum()
        return float(self.yy.sum() + quadratic)


class _Dual(RidgeFit):
    """The same minimum from products of rows, for layers with more columns than there can be rows."""

    def __init__(self, columns: int, *, intercept: bool) -> None:
        super().__init__(columns, intercept=intercept)
        self._rows: tuple[list[Tensor], list[Tensor]] = ([], [])

    def _take(self, both: Tensor, held_out: bool) -> None:
        self._rows[held_out].append(both)

    def _split(self, *parts: bool) -> tuple[Tensor, Tensor]:
        rows = torch.cat([r for part in parts for r in self._rows[part]], 1).double()
        return rows[:, :, : self.columns], rows[:, :, self.columns :]

    def _centred(self, x: Tensor, y: Tensor, by: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.intercept:
            return x, y
        return x - by[0].mean(1, keepdim=True), y - by[1].mean(1, keepdim=True)

    def _held_out_errors(self, prior: Tensor) -> tuple[float, dict[float, float], float]:
        fitted = self._split(False)
        held = self._split(True) if self._rows[1] else fitted
        x, y = self._centred(*fitted, by=fitted)
        held_x, held_y = self._centred(*held, by=held)
        missing = held_y - held_x @ prior
        across = held_x @ x.transpose(1, 2)
        errors = {}
        for ridge in RIDGES:
            errors[ridge] = _mean_square(missing - across @ _dual_weights(x, y - x @ prior, ridge))
        return _mean_square(missing), errors, _mean_square(held_y)

    def _solve(self, ridge: float, prior: Tensor) -> Tensor:
        every = self._split(False, True)
        x, y = self._centred(*every, by=every)
        return prior + x.transpose(1, 2) @ _dual_weights(x, y - x @ prior, ridge)

    def _intercept(self, weight: Tensor) -> Tensor:
        x, y = self._split(False, True)
        return y.mean(1) - (x.mean(1, keepdim=True) @ weight)[:, 0]


def _dual_weights(x: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """``(groups, n, outputs)``: the rows' shares in the change of the weights."""
    kernel = x @ x.transpose(1, 2)
    total = kernel.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)
    kernel.diagonal(dim1=1, dim2=2).add_(ridge * total[:, None] / x.shape[2])
    return torch.cholesky_solve(missing, torch.linalg.cholesky(kernel))


def _mean_square(rows: Tensor) -> float:
    return float(rows.square().sum() / rows.shape[1])
