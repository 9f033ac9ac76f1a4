"""Running sums of rows and of their products, and how many rows they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress import processes
from mint_compress.estimators.products import with_itself
from mint_compress.estimators.samples import full_precision

MAX_COLUMNS = 4608
"""Above this many columns a layer is described by its channels' contributions instead of its patches."""

AT_ONCE = 1024
"""Rows that are multiplied together, at least; of wide rows as many as they have columns."""

ROWS_PER_COLUMN = 16
"""Rows for every column, so that a covariance is well determined."""

LEAST_ROWS = 32768
"""Rows even of a layer with few columns, of all its channel groups together."""
MOST_SHARING = 8
"""Channel groups that share them; of more groups each has as many as if there were so many."""


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of rows, and their products with targets.

    Attributes
    ----------
    mean, covariance
        ``(groups, columns)`` and ``(groups, columns, columns)`` float64, centred.
    target_mean, cross, target_variance
        ``(groups, outputs)``, ``(groups, columns, outputs)`` and ``(groups, outputs)`` float64, centred; of
        rows without targets they have no outputs.
    """

    mean: Tensor
    covariance: Tensor
    target_mean: Tensor
    cross: Tensor
    target_variance: Tensor

    def sums(self, rows: int) -> dict[str, Tensor]:
        """Of so many rows."""
        return {"mean": rows * self.mean, "target_mean": rows * self.target_mean}

    def products_about(self, mean: Tensor, target_mean: Tensor, rows: int) -> dict[str, Tensor]:
        """Sums of products of so many rows, less these means."""
        x, y = self.mean - mean, self.target_mean - target_mean
        return {
            "covariance": rows * (self.covariance + x[:, :, None] * x[:, None, :]),
            "cross": rows * (self.cross + x[:, :, None] * y[:, None, :]),
            "target_variance": rows * (self.target_variance + y.square()),
        }


class MomentSum:
    """Running sums of rows and their products, in float64 and shifted, so that nothing cancels."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: _Sums | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Tensor, targets: Tensor | None = None) -> None:
        """Add ``(groups, n, columns)`` rows and their ``(groups, n, outputs)`` targets.

        They are multiplied in their own precision, and float32 at least; they must not change afterwards.
        """
        self.rows += rows.shape[1]
        self._waiting.append((rows, rows[:, :, :0] if targets is None else targets))
        # a product of few rows costs as much as the sum that it is added to
        if sum(x.shape[1] for x, _ in self._waiting) >= max(AT_ONCE, rows.shape[2]):
            self._take_in()

    def _take_in(self) -> None:
        x, y = (
            torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*self._waiting, strict=True)
        )
        self._waiting = []
        if self._sums is None:
            self._sums = _Sums.counted_from(*(part.mean(1, keepdim=True).double() for part in (x, y)))
        self._sums.add_(*(part.to(torch.promote_types(part.dtype, torch.float32)) for part in (x, y)))

    def add_up_(self) -> None:
        """Take in the rows of all processes, every one of which must call this, even if it has no rows."""
        if processes.world() == 1:
            return
        own, rows = self.result() if self.rows else None, self.rows
        self.rows = sum(processes.gathered(rows))
        if not self.rows:
            return
        total = processes.summed({} if own is None else own.sums(rows))
        means = total["mean"] / self.rows, total["target_mean"] / self.rows
        total = processes.summed({} if own is None else own.products_about(*means, rows))
        self._sums = _Sums(
            (means[0][:, None], means[1][:, None]),
            (torch.zeros_like(means[0][:, None]), torch.zeros_like(means[1][:, None])),
            total["covariance"],
            total["cross"],
            total["target_variance"][:, None],
        )

    def result(self) -> Moments:
        """The moments of all rows; there must have been one."""
        if self._waiting:
            self._take_in()
        assert self._sums is not None
        return self._sums.moments(self.rows)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Shifts and sums, ``(groups, 1, ...)``, and sums of products; all float64."""

    shift: tuple[Tensor, Tensor]
    first: tuple[Tensor, Tensor]
    squares: Tensor
    cross: Tensor
    target_squares: Tensor

    @staticmethod
    def counted_from(x: Tensor, y: Tensor) -> _Sums:
        groups, _, columns = x.shape
        squares = x.new_zeros(groups, columns, columns)
        return _Sums(
            (x, y),
            (torch.zeros_like(x), torch.zeros_like(y)),
            squares,
            x.new_zeros(groups, columns, y.shape[2]),
            torch.zeros_like(y),
        )

    def add_(self, x: Tensor, y: Tensor) -> None:
        x, y = (part - shift.to(part) for part, shift in zip((x, y), self.shift, strict=True))
        for total, part in zip(self.first, (x, y), strict=True):
            total.add_(part.sum(1, keepdim=True))
        with full_precision():
            if len(x) == 1:
                self.squares[0].add_(with_itself(x[0]))
            else:  # narrow ones, of which there may be many
                self.squares.add_(x.transpose(1, 2) @ x)
            if y.shape[2]:
                self.cross.add_(x.transpose(1, 2) @ y)
                self.target_squares.add_(y.square().sum(1, keepdim=True))

    def moments(self, rows: int) -> Moments:
        x, y = (total / rows for total in self.first)
        return Moments(
            (x + self.shift[0]).squeeze(1),
            self.squares / rows - x.transpose(1, 2) @ x,
            (y + self.shift[1]).squeeze(1),
            self.cross / rows - x.transpose(1, 2) @ y,
            (self.target_squares / rows - y.square()).squeeze(1),
        )


def rows_wanted(columns: int, images: int, groups: int = 1) -> int:
    """Positions per image so that a layer's rows suffice for its columns, and no more.

    Each channel group of a layer has so many columns, and rows of its own at the same positions.
    """
    least = LEAST_ROWS // min(groups, MOST_SHARING)
    return -(-max(least, ROWS_PER_COLUMN * columns) // max(images, 1))
