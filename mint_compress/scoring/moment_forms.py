"""The forms in which a layer's second moments are kept, and which of them suits a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mint_compress.nn.im2col import input_rows, is_plain, output_positions, sample_positions, weight_matrix
from mint_compress.nn.input_selection import selected
from mint_compress.nn.layers import channel_groups, matrix_columns, taps
from mint_compress.nn.moments import MAX_COLUMNS, MomentSum, rows_wanted
from mint_compress.scoring.layer_moments import LayerMoments, MomentAccumulator
from mint_compress.scoring.wide_layers import ContributionMoments


@dataclass(frozen=True, eq=False)
class WatchedLayer:
    """A layer whose moments are wanted, and how much of the data is looked at.

    Attributes
    ----------
    module
        The layer itself.
    units
        ``(C_in,)`` int64: the unit of each input channel; -1 for channels that stay.
    images
        Images in all batches.
    seed
        Draws the positions.
    """

    module: nn.Module
    units: Tensor
    images: int
    seed: int


class MomentsOfLayer:
    """A layer's moments in the form that suits it, which its first call tells."""

    def __init__(self, layer: WatchedLayer) -> None:
        self._layer = layer
        self._form: MomentAccumulator | None = None

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        if self._form is None:
            self._form = _suitable(self._layer, inputs, output)
        self._form.add(inputs, output)

    def result(self) -> LayerMoments:
        """The moments of all calls; there must have been one."""
        assert self._form is not None
        return self._form.result()


def _suitable(layer: WatchedLayer, inputs: Tensor, output: Tensor) -> MomentAccumulator:
    """The form for a layer of which one call is known; that call is not yet added."""
    generator = torch.Generator().manual_seed(layer.seed)
    if not is_plain(layer.module, inputs, output):
        return _PixelMoments(layer, generator)
    if matrix_columns(layer.module) <= MAX_COLUMNS:
        return _PatchMoments(layer, generator)
    return ContributionMoments(layer.module, layer.units, layer.images, generator)


class _PatchMoments:
    """Columns are (channel, kernel position): the layer is exactly rows times its weight matrix."""

    def __init__(self, layer: WatchedLayer, generator: torch.Generator) -> None:
        self._layer, self._units, self._generator = layer.module, layer.units, generator
        columns, groups = matrix_columns(layer.module), channel_groups(layer.module)
        self._wanted = rows_wanted(columns, layer.images, groups)
        self._sum = MomentSum()

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        places = output_positions(self._layer, output)
        positions = sample_positions(places, self._wanted, self._generator)
        self._sum.add(input_rows(self._layer, inputs, output, positions))

    def result(self) -> LayerMoments:
        """The moments of all calls."""
        seen = self._sum.result()
        weight = weight_matrix(self._layer).to(seen.covariance)
        units = self._units.reshape(channel_groups(self._layer), -1)
        units = units.repeat_interleave(taps(self._layer), dim=1).to(weight.device)
        return LayerMoments("patches", seen.covariance, seen.mean, weight, units, self._sum.rows)


class _PixelMoments:
    """Columns are input channels, for layers that are not a matrix applied to patches."""

    def __init__(self, layer: WatchedLayer, generator: torch.Generator) -> None:
        self._layer, self._units, self._generator = layer.module, layer.units, generator
        self._images = layer.images
        self._sum = MomentSum()

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        inputs, groups = selected(self._layer, inputs), channel_groups(self._layer)
        if isinstance(self._layer, nn.Linear):
            pixels = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).transpose(1, 2)
        else:
            pixels = inputs.flatten(2)
        wanted = rows_wanted(pixels.shape[1] // groups, self._images, groups)
        positions = sample_positions(pixels.shape[2], wanted, self._generator).to(inputs.device)
        picked = pixels.index_select(2, positions).reshape(inputs.shape[0], groups, -1, len(positions))
        self._sum.add(picked.permute(1, 0, 3, 2).reshape(groups, -1, picked.shape[2]))

    def result(self) -> LayerMoments:
        """The moments of all calls."""
        seen = self._sum.result()
        groups = channel_groups(self._layer)
        units = self._units.reshape(groups, -1)
        weight = weight_matrix(self._layer)
        if not getattr(self._layer, "transposed", False):
            # every kernel position is an output of its own: correlations between pixels are left out
            weight = weight.reshape(groups, units.shape[1], -1)
        return LayerMoments(
            "pixels", seen.covariance, seen.mean, weight.to(seen.covariance), units.to(seen.mean.device),
            self._sum.rows,
        )  # fmt: skip
