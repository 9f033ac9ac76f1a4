"""A layer too wide for its patches, described by what each unit contributes to its outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mint_compress.nn.im2col import weight_matrix
from mint_compress.nn.layers import taps


def contribution_units(units: Tensor) -> Tensor:
    """The unit of each column of :func:`contribution_rows`: ascending, then -1 where channels stay."""
    present = units.unique(sorted=True)
    return torch.cat([present[present >= 0], present[present < 0]])


def contribution_rows(layer: nn.Module, rows: Tensor, units: Tensor) -> Tensor:
    """Every unit's share of every output: ``(1, n * outputs, columns)``; the columns sum to the output.

    Parameters
    ----------
    rows
        ``(1, n, columns)`` from :func:`input_rows`.
    units
        ``(C_in,)`` unit of each input channel; -1 for channels that stay, which share one column.
    """
    matrix = weight_matrix(layer).to(rows.dtype)[0]
    owner = units.to(rows.device).repeat_interleave(taps(layer))
    columns = contribution_units(units).tolist()
    shares = rows.new_empty(rows.shape[1], matrix.shape[1], len(columns))
    for column, unit in enumerate(columns):
        mine = (owner == unit).nonzero()[:, 0]
        shares[:, :, column] = rows[0][:, mine] @ matrix[mine]
    return shares.reshape(1, -1, len(columns))


class Shares:
    """Rows of contributions, and their covariance within each output.

    All outputs go into one matrix. Each has a mean of its own, which a bias takes up: counted as if they
    had one in common, a constant input would seem to say something, by the weights it is multiplied with.
    """

    def __init__(self, layer: nn.Module, units: Tensor) -> None:
        self.layer, self.units = layer, units
        self.shift: Tensor | None = None
        self.sum: Tensor | None = None
        self.rows = 0

    def of(self, rows: Tensor) -> Iterator[Tensor]:
        """What ``(1, n, columns)`` input rows contribute, counted from the mean of the first of them."""
        if self.shift is None or self.sum is None:
            self.shift = rows.mean(1, keepdim=True)
            self.sum = torch.zeros_like(self.shift, dtype=torch.float64)
        rows = rows - self.shift
        self.sum += rows.sum(1, keepdim=True)
        self.rows += rows.shape[1]
        for few in rows.split(8, dim=1):  # a row becomes outputs x units numbers
            yield contribution_rows(self.layer, few, self.units)

    def within(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The mean covariance within an output, from the mean and covariance of all rows."""
        assert self.sum is not None
        means = contribution_rows(self.layer, self.sum / self.rows, self.units)
        return covariance + mean[:, :, None] * mean[:, None] - means.transpose(1, 2) @ means / means.shape[1]
