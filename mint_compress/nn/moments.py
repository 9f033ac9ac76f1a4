"""Running sums of rows and of their products, and how many rows they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COLUMNS = 8192
"""Above this many columns a layer is described by its channels' contributions instead of its patches."""

WIDE = 1024
"""Rows wider than this are multiplied in float32; sums are always float64."""

AT_ONCE = 1024
"""Rows that are multiplied together, at least; of wide rows as many as they have columns."""

ROWS_PER_COLUMN = 16
"""Rows for every column, so that a covariance is well determined."""

LEAST_ROWS = 32768
"""Rows even of a layer with few columns."""


class MomentSum:
    """Running sums of rows and their products, in float64 and shifted, so that nothing cancels."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: _Sums | None = None
        self._waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add ``(groups, n, columns)`` rows, which must not change from now on."""
        self.rows += rows.shape[1]
        self._waiting.append(rows)
        # a product of few rows costs as much as the sum that it is added to
        if sum(r.shape[1] for r in self._waiting) >= max(AT_ONCE, rows.shape[2]):
            self._take_in()

    def _take_in(self) -> None:
        rows = torch.cat(self._waiting, 1) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting = []
        if self._sums is None:
            self._sums = _Sums.counted_from(rows.mean(1, keepdim=True).double())
        # wide rows are multiplied in the network's precision, and float32 at least
        wide = torch.promote_types(rows.dtype, torch.float32) if rows.shape[2] > WIDE else torch.float64
        self._sums.add_(rows.to(wide) - self._sums.shift.to(wide))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean ``(groups, columns)`` and centred covariance ``(groups, columns, columns)``."""
        if self._waiting:
            self._take_in()
        assert self._sums is not None
        mean = self._sums.first / self.rows
        covariance = self._sums.second / self.rows - mean.transpose(1, 2) @ mean
        return (mean + self._sums.shift).squeeze(1), covariance


@dataclass(frozen=True, eq=False)
class _Sums:
    """Shift and sum, ``(groups, 1, columns)``, and ``(groups, columns, columns)`` products; all float64."""

    shift: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def counted_from(shift: Tensor) -> _Sums:
        groups, _, columns = shift.shape
        return _Sums(shift, torch.zeros_like(shift), shift.new_zeros(groups, columns, columns))

    def add_(self, shifted: Tensor) -> None:
        self.first.add_(shifted.sum(1, keepdim=True))
        self.second.add_(shifted.transpose(1, 2) @ shifted)


def rows_wanted(columns: int, images: int) -> int:
    """Positions per image so that a layer's rows suffice for its columns, and no more."""
    return -(-max(LEAST_ROWS, ROWS_PER_COLUMN * columns) // max(images, 1))
