"""Running sums of rows and of their products, and how many rows they need."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_COLUMNS = 8192
"""Above this many columns a layer is described by its channels' contributions instead of its patches."""


WIDE = 1024
"""Rows wider than this are multiplied batch by batch in float32; sums are always float64."""


ROWS_PER_COLUMN = 16


LEAST_ROWS = 32768


class MomentSum:
    """Running sums of rows and their products, in float64 and shifted, so that nothing cancels."""

    def __init__(self) -> None:
        self.rows = 0
        self._shift: Tensor | None = None
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add ``(groups, n, columns)`` rows."""
        groups, number, size = rows.shape
        if self._shift is None:
            self._shift = rows.mean(1, keepdim=True).double()
            self._first = torch.zeros(groups, 1, size, dtype=torch.float64, device=rows.device)
            self._second = torch.zeros(groups, size, size, dtype=torch.float64, device=rows.device)
        assert self._first is not None and self._second is not None
        # one batch of wide rows is multiplied in the network's precision, and float32 at least
        wide = torch.promote_types(rows.dtype, torch.float32) if size > WIDE else torch.float64
        rows = rows.to(wide) - self._shift.to(wide)
        self._first += rows.sum(1, keepdim=True)
        self._second += rows.transpose(1, 2) @ rows
        self.rows += number

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean ``(groups, columns)`` and centred covariance ``(groups, columns, columns)``."""
        assert self._first is not None and self._second is not None and self._shift is not None
        mean = self._first / self.rows
        covariance = self._second / self.rows - mean.transpose(1, 2) @ mean
        return (mean + self._shift).squeeze(1), covariance


def rows_wanted(columns: int, images: int) -> int:
    """Positions per image so that a layer's rows suffice for its columns, and no more."""
    return -(-max(LEAST_ROWS, ROWS_PER_COLUMN * columns) // max(images, 1))
