"""Running sums of rows and of their products, and how many rows they need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COLUMNS = 8192
"""Above this many columns a layer is described by its channels' contributions instead of its patches."""

WIDE = 1024
"""Rows wider than this are multiplied batch by batch in float32; sums are always float64."""

ROWS_PER_COLUMN = 16
"""Rows for every column, so that a covariance is well determined."""

LEAST_ROWS = 32768
"""Rows even of a layer with few columns."""


class MomentSum:
    """Running sums of rows and their products, in float64 and shifted, so that nothing cancels."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: _Sums | None = None

    def add(self, rows: Tensor) -> None:
        """Add ``(groups, n, columns)`` rows."""
        if self._sums is None:
            self._sums = _Sums.counted_from(rows.mean(1, keepdim=True).double())
        # one batch of wide rows is multiplied in the network's precision, and float32 at least
        wide = torch.promote_types(rows.dtype, torch.float32) if rows.shape[2] > WIDE else torch.float64
        self._sums.add_(rows.to(wide) - self._sums.shift.to(wide))
        self.rows += rows.shape[1]

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean ``(groups, columns)`` and centred covariance ``(groups, columns, columns)``."""
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
