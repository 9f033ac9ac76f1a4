"""A layer too wide for its patches, described by what each unit contributes to its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mint_compress import processes
from mint_compress.nn.im2col import input_rows, output_positions, sample_positions, weight_matrix
from mint_compress.nn.layers import taps
from mint_compress.nn.moments import MomentSum
from mint_compress.scoring.layer_moments import LayerMoments

LEAST_PLACES = 1024
"""Places that a layer is looked at, at least: every output there is a row of its own."""

ROWS_AT_ONCE = 8
"""Input rows whose contributions are in memory at once: each becomes outputs times units numbers."""


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


class ContributionMoments:
    """Moments of the units' contributions, their covariance within each output.

    All outputs go into one matrix. Each has a mean of its own, which a bias takes up: counted as if they
    had one in common, a constant input would seem to say something, by the weights it is multiplied with.

    Parameters
    ----------
    layer
        A layer that is plain (see :func:`is_plain`) and has one channel group.
    units
        ``(C_in,)`` unit of each input channel; -1 for channels that stay.
    images
        Images in all batches.
    generator
        Draws the places.
    """

    def __init__(self, layer: nn.Module, units: Tensor, images: int, generator: torch.Generator) -> None:
        self._layer, self._units, self._generator = layer, units, generator
        self._places = -(-LEAST_PLACES // images)
        self._contributions = MomentSum()
        self._inputs = _ShiftedSum()

    def look(self, inputs: Tensor, output: Tensor) -> int:
        """See a call without counting it; how many places it has."""
        places = output_positions(self._layer, output)
        self._inputs.count_from(
            input_rows(self._layer, inputs, output, torch.arange(min(places, LEAST_PLACES)))
        )
        return places

    def draw(self, places: int) -> Tensor:
        """The places of the next call that count."""
        return sample_positions(places, self._places, self._generator)

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        positions = self.draw(output_positions(self._layer, output))
        rows = self._inputs.add(input_rows(self._layer, inputs, output, positions))
        for few in rows.split(ROWS_AT_ONCE, dim=1):
            self._contributions.add(contribution_rows(self._layer, few, self._units))

    def add_up_(self) -> None:
        """Take in the calls of all processes, which must have looked at the same one."""
        self._contributions.add_up_()
        self._inputs.add_up_()

    def result(self) -> LayerMoments:
        """The moments of all calls; a column's weight is 1."""
        seen = self._contributions.result()
        mean = seen.mean
        means = contribution_rows(self._layer, self._inputs.mean(), self._units)
        covariance = seen.covariance + mean[:, :, None] * mean[:, None] - _mean_product(means)
        units = contribution_units(self._units)[None].to(covariance.device)
        weight = torch.ones(1, units.shape[1], 1).to(covariance)
        return LayerMoments("contributions", covariance, mean, weight, units, self._contributions.rows)


class _ShiftedSum:
    """The mean of rows, counted from that of the first of them or of others, so that nothing cancels."""

    def __init__(self) -> None:
        self._shift: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._rows = 0

    def count_from(self, rows: Tensor) -> Tensor:
        """Count from the mean of these rows, which are not taken in, unless it is counted from others."""
        if self._shift is None:
            self._shift = rows.mean(1, keepdim=True)
        return self._shift

    def add_up_(self) -> None:
        """Take in the rows of all processes, which must have counted from the same."""
        self._rows = sum(processes.gathered(self._rows))
        own = {"sum": self._sum} if isinstance(self._sum, Tensor) else {}
        self._sum = processes.summed(own)["sum"]

    def add(self, rows: Tensor) -> Tensor:
        """Take ``(1, n, columns)`` rows, and give them back shifted."""
        rows = rows - self.count_from(rows)
        self._sum = self._sum + rows.sum(1, keepdim=True).double()
        self._rows += rows.shape[1]
        return rows

    def mean(self) -> Tensor:
        """``(1, 1, columns)`` float64 of the shifted rows."""
        assert isinstance(self._sum, Tensor)
        return self._sum / self._rows


def _mean_product(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2) @ rows / rows.shape[1]
