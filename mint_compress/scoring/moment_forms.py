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
        self._places = list[int]()

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        if self._form is None:
            self._form = _suitable(self._layer, inputs, output)
        self._form.add(inputs, output)

    @property
    def is_known(self) -> bool:
        """Whether a call was seen."""
        return self._form is not None

    def look(self, inputs: Tensor, output: Tensor) -> None:
        """See a call in a pass that does not count, so that others can be skipped."""
        if self._form is None:
            self._form = _suitable(self._layer, inputs, output)
        self._places.append(self._form.look(inputs, output))

    def skip(self) -> None:
        """Draw what a pass like the one looked at would draw: another process takes it."""
        if self._form is not None:
            for places in self._places:
                self._form.draw(places)

    def add_up_(self) -> None:
        """Take in what all processes have added; every one of them has looked, and must call this."""
        if self._form is not None:
            self._form.add_up_()

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

    def look(self, inputs: Tensor, output: Tensor) -> int:
        """See a call without counting it; how many places it has."""
        return output_positions(self._layer, output)

    def draw(self, places: int) -> Tensor:
        """The places of the next call that count."""
        return sample_positions(places, self._wanted, self._generator)

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        positions = self.draw(output_positions(self._layer, output))
        self._sum.add(input_rows(self._layer, inputs, output, positions))

    def add_up_(self) -> None:
        """Take in the calls of all processes."""
        self._sum.add_up_()

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

    def _pixels(self, inputs: Tensor) -> Tensor:
        inputs = selected(self._layer, inputs)
        if isinstance(self._layer, nn.Linear):
            return inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).transpose(1, 2)
        return inputs.flatten(2)

    def look(self, inputs: Tensor, output: Tensor) -> int:
        """See a call without counting it; how many places it has."""
        return self._pixels(inputs).shape[2]

    def draw(self, places: int) -> Tensor:
        """The places of the next call that count."""
        groups = channel_groups(self._layer)
        wanted = rows_wanted(self._units.numel() // groups, self._images, groups)
        return sample_positions(places, wanted, self._generator)

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer."""
        pixels, groups = self._pixels(inputs), channel_groups(self._layer)
        positions = self.draw(pixels.shape[2]).to(pixels.device)
        picked = pixels.index_select(2, positions).reshape(len(pixels), groups, -1, len(positions))
        self._sum.add(picked.permute(1, 0, 3, 2).reshape(groups, -1, picked.shape[2]))

    def add_up_(self) -> None:
        """Take in the calls of all processes."""
        self._sum.add_up_()

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
