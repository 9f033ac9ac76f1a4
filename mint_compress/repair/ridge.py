"""Ridge regression that is shrunk toward the weights a layer has, its ridge chosen on held-out images."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mint_compress import processes
from mint_compress.nn.moments import MAX_COLUMNS, MomentSum

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Shares of the mean input variance, of which the best on held-out images is used."""
DUAL_ROWS = 4096
"""Rows that a layer of more columns than products are formed of is fitted to, at most."""
NARROW = 1024
"""Up to so many columns products are formed in float64; wider ones in the network's precision."""
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

    def to(self, device: torch.device | str) -> Chosen:
        """The same, with its tensors on ``device``."""
        intercept = None if self.intercept is None else self.intercept.to(device)
        return replace(self, weight=self.weight.to(device), intercept=intercept)


class RidgeFit(ABC):
    """Minimises ``|y - x W|^2 / n + ridge * scale * |W - prior|^2``; scale is the mean variance of x."""

    def __init__(self, columns: int, *, intercept: bool) -> None:
        self.columns, self.intercept = columns, intercept

    @staticmethod
    def of(columns: int, *, rows: int, intercept: bool) -> RidgeFit:
        """The smaller form: products of columns, or, where there are fewer rows than columns, of rows."""
        primal = columns <= MAX_COLUMNS and columns <= rows
        return (_Primal if primal else _Dual)(columns, intercept=intercept)

    def add(self, x: Tensor, y: Tensor, images: range) -> None:
        """Add inputs ``(groups, n, columns)`` and targets ``(groups, n, outputs)`` of these images."""
        # on the CPU, so that nothing waits for a GPU
        held = torch.tensor(images) % HELD_OUT == HELD_OUT - 1
        for out, which in ((False, ~held), (True, held)):
            if bool(which.any()):
                rows = which.nonzero()[:, 0].to(x.device)
                self._take(_of_images(x, len(images), rows), _of_images(y, len(images), rows), out)

    def choose(self, prior: Tensor) -> Chosen:
        """Try ridges on the held-out rows; refit with the best on all rows.

        Parameters
        ----------
        prior
            ``(groups, columns, outputs)`` float64 weights.
        """
        nothing, error_with, variance = self._held_out(prior)
        ridge, error = _lowest(error_with)
        better = error < nothing
        weight = self._solve(ridge, prior) if better else prior
        scale = max(variance, 1e-30)
        intercept = self._intercept(weight) if self.intercept else None
        after = min(error, nothing)
        return Chosen(weight, intercept, ridge if better else None, nothing / scale, after / scale)

    @abstractmethod
    def add_up_(self) -> None:
        """Take in what all processes have added, every one of which must call this."""

    @abstractmethod
    def _take(self, x: Tensor, y: Tensor, held_out: bool) -> None:
        """Keep ``(groups, n, columns)`` inputs and ``(groups, n, outputs)`` targets."""

    @abstractmethod
    def _held_out(self, prior: Tensor) -> tuple[float, Callable[[float], float], float]:
        """Error of the prior, error with a ridge, variance of the targets; all on held-out rows."""

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

    def _take(self, x: Tensor, y: Tensor, held_out: bool) -> None:
        if self.columns <= NARROW:
            x, y = x.double(), y.double()
        self._sums[held_out].add(x, y)

    def add_up_(self) -> None:
        for one in self._sums:
            one.add_up_()

    def _held_out(self, prior: Tensor) -> tuple[float, Callable[[float], float], float]:
        fitted = _Normal.of(self._sums[0], self.intercept)
        held = _Normal.of(self._sums[1], self.intercept) if self._sums[1].rows else fitted
        self._all = fitted.joined(held) if self._sums[1].rows else fitted

        def error_with(ridge: float) -> float:
            # too small a ridge for columns that depend on each other
            with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                return held.error(fitted.solve(ridge, prior))
            return math.inf

        return held.error(prior), error_with, float(held.yy.sum())

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
    def of(total: MomentSum, intercept: bool) -> _Normal:
        seen = total.result()
        x, y = seen.mean, seen.target_mean
        if intercept:
            return _Normal(seen.covariance, seen.cross, seen.target_variance, x, y, total.rows)
        # products as they are, about zero
        return _Normal(
            seen.covariance + x[:, :, None] * x[:, None, :],
            seen.cross + x[:, :, None] * y[:, None, :],
            seen.target_variance + y.square(),
            torch.zeros_like(x),
            torch.zeros_like(y),
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
        self._rows: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])

    def _take(self, x: Tensor, y: Tensor, held_out: bool) -> None:
        self._rows[held_out].append((x, y))

    def add_up_(self) -> None:
        if processes.world() == 1:
            return
        device = next((x.device for rows in self._rows for x, _ in rows), torch.device("cpu"))
        for rows in self._rows:
            every = processes.gathered([(x.cpu(), y.cpu()) for x, y in rows])
            rows[:] = [(x.to(device), y.to(device)) for each in every for x, y in each]

    def _split(self, *parts: bool) -> tuple[Tensor, Tensor]:
        rows = [pair for part in parts for pair in self._rows[part]]
        x, y = (torch.cat(each, 1).double() for each in zip(*rows, strict=True))
        return x, y

    def _centred(self, x: Tensor, y: Tensor, by: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.intercept:
            return x, y
        return x - by[0].mean(1, keepdim=True), y - by[1].mean(1, keepdim=True)

    def _held_out(self, prior: Tensor) -> tuple[float, Callable[[float], float], float]:
        fitted = self._split(False)
        held = self._split(True) if self._rows[1] else fitted
        x, y = self._centred(*fitted, by=fitted)
        held_x, held_y = self._centred(*held, by=held)
        missing = held_y - held_x @ prior
        across = held_x @ x.transpose(1, 2)
        lacking = y - x @ prior

        def error_with(ridge: float) -> float:
            return _mean_square(missing - across @ _dual_weights(x, lacking, ridge))

        return _mean_square(missing), error_with, _mean_square(held_y)

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


def _lowest(error_with: Callable[[float], float]) -> tuple[float, float]:
    """The ridge with the lowest error, and that error: downhill from the middle, where few need be tried."""
    error_at = functools.cache(lambda i: error_with(RIDGES[i]))
    at = len(RIDGES) // 2
    while True:
        # among equals the larger ridge, which changes less
        lowest = min(range(min(at + 1, len(RIDGES) - 1), max(at - 2, -1), -1), key=error_at)
        if lowest == at:
            return RIDGES[at], error_at(at)
        at = lowest


def _mean_square(rows: Tensor) -> float:
    return float(rows.square().sum() / rows.shape[1])


def _of_images(part: Tensor, images: int, rows: Tensor) -> Tensor:
    """The rows of some of the images, which have as many each."""
    each: Tensor = part.unflatten(1, (images, -1))
    return each.index_select(1, rows).flatten(1, 2)
