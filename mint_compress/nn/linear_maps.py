"""Every layer as a linear map: a transposed convolution maps patches of its input to blocks of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.nn import im2col
from mint_compress.nn.layers import channel_groups, in_channels, is_transposed, matrix_columns, out_channels


class LinearMap:
    """A convolution or a linear layer: ``rows(...) @ matrix() + bias`` is ``outputs(...)``.

    Attributes
    ----------
    columns
        Of a row, for one channel group.
    groups
        Channel groups.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.columns, self.groups = matrix_columns(layer), channel_groups(layer)

    def places(self, output: Tensor) -> int:
        """How many rows there are of one sample."""
        return im2col.output_positions(self.layer, output)

    def rows(self, inputs: Tensor, output: Tensor, positions: Tensor) -> Tensor:
        """``(groups, batch * m, columns)`` at ``m`` of the places, the same of every sample."""
        return im2col.input_rows(self.layer, inputs, output, positions)

    def outputs(self, output: Tensor, positions: Tensor) -> Tensor:
        """``(groups, batch * m, outputs)`` at these places."""
        return im2col.output_rows(self.layer, output, positions)

    def matrix(self) -> Tensor:
        """``(groups, columns, outputs)`` in float64."""
        return im2col.weight_matrix(self.layer)

    def write_(self, matrix: Tensor) -> None:
        """Put such a matrix into the layer's weight."""
        im2col.set_weight_matrix(self.layer, matrix)

    def by_channel(self, values: Tensor) -> Tensor:
        """``(C_out,)``: of values for each output of the map their mean for each channel of the layer."""
        return values.reshape(out_channels(self.layer), -1).mean(1)

    def is_exact(self, inputs: Tensor, output: Tensor) -> bool:
        """Whether the layer really is this map; a subclass may pad or rescale on its own."""
        return im2col.is_plain(self.layer, inputs, output)


def linear_map(layer: nn.Module) -> LinearMap:
    """The map of a convolution or linear layer."""
    return _Blocks(layer) if _is_in_blocks(layer) else LinearMap(layer)


def _is_in_blocks(layer: Any) -> bool:
    if not is_transposed(layer) or layer.groups > 1 or set(layer.dilation) != {1}:
        return False
    return all(k % s == 0 for k, s in zip(layer.kernel_size, layer.stride, strict=True))


class _Blocks(LinearMap):
    """A transposed convolution whose kernel is a multiple of its stride.

    What it gives falls into blocks as large as the stride. Output ``q s + f - padding`` is the sum over j of
    input ``q - j`` times the weight at ``j s + f``, for every place f in block q: all pixels of a block are
    made of the same patch of kernel / stride inputs (Shi et al., "Is the deconvolution layer the same as a
    convolutional layer?", 2016).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        own, self.groups = self.layer, 1
        self.taps = [k // s for k, s in zip(own.kernel_size, own.stride, strict=True)]
        self.columns = in_channels(layer) * math.prod(self.taps)

    def places(self, output: Tensor) -> int:
        """Blocks that lie within the output."""
        return math.prod(max(0, last - first) for first, last in self._extents(output))

    def rows(self, inputs: Tensor, output: Tensor, positions: Tensor) -> Tensor:
        """Patches of the input."""
        extents = self._extents(output)
        pads = [
            (j - 1, max(0, e[1] - n)) for j, e, n in zip(self.taps, extents, inputs.shape[2:], strict=True)
        ]
        windows = F.pad(inputs, [size for pair in reversed(pads) for size in pair])
        for dim, taps in enumerate(self.taps):
            windows = windows.unfold(2 + dim, taps, 1)
        at = [
            place + first for place, (first, _) in zip(_unravelled(positions, extents), extents, strict=True)
        ]
        everything: Any = (slice(None), slice(None), *at)
        picked = windows[everything]  # (n, c, m, taps...), the last tap first
        picked = picked.flip(list(range(3, picked.ndim))).movedim(2, 1)
        return picked.reshape(1, -1, self.columns)

    def outputs(self, output: Tensor, positions: Tensor) -> Tensor:
        """Blocks of the output, with all their pixels."""
        extents, strides, paddings = self._extents(output), self.layer.stride, self.layer.padding
        for dim, ((first, last), s, p) in enumerate(zip(extents, strides, paddings, strict=True)):
            output = output.narrow(2 + dim, first * s - p, (last - first) * s)
        for dim, s in enumerate(strides):
            output = output.unflatten(2 + 2 * dim, (-1, s))
        blocks = output.permute(0, *range(2, output.ndim, 2), 1, *range(3, output.ndim, 2))
        everything: Any = (slice(None), *_unravelled(positions, extents))
        picked = blocks[everything]
        return picked.reshape(1, picked.shape[0] * picked.shape[1], -1)

    def matrix(self) -> Tensor:
        """Columns go by input channel, then by place in the patch; outputs by channel, then by pixel."""
        return self._divided(self.layer.weight.detach().double()).reshape(1, self.columns, -1)

    def write_(self, matrix: Tensor) -> None:
        """The other way round."""
        like = self._divided(self.layer.weight.detach())
        order = self._order()
        back = matrix.reshape(like.shape).permute(*(order.index(i) for i in range(len(order))))
        with torch.no_grad():
            self.layer.weight.copy_(back.reshape(self.layer.weight.shape))

    def is_exact(self, inputs: Tensor, output: Tensor) -> bool:
        """As of any layer; not where the output is so small that no block lies within it."""
        count = self.places(output)
        if count == 0:
            return False
        positions = torch.unique(torch.tensor([0, count // 2, count - 1], device=output.device))
        ours = self.rows(inputs[:1], output[:1], positions).double() @ self.matrix()
        if (bias := self.layer.bias) is not None:
            ours = ours + bias.detach().double().repeat_interleave(math.prod(self.layer.stride))
        return im2col.agrees(ours, self.outputs(output[:1], positions).double())

    def _divided(self, weight: Tensor) -> Tensor:
        """(in, patch..., out, place in the block...)"""
        for dim, (taps, s) in enumerate(zip(self.taps, self.layer.stride, strict=True)):
            weight = weight.unflatten(2 + 2 * dim, (taps, s))
        return weight.permute(*self._order())

    def _order(self) -> list[int]:
        dims = range(2, 2 + 2 * len(self.taps), 2)
        return [0, *dims, 1, *(dim + 1 for dim in dims)]

    def _extents(self, output: Tensor) -> list[tuple[int, int]]:
        """First block within the output, and the one behind the last, along each dimension."""
        sizes = zip(output.shape[2:], self.layer.stride, self.layer.padding, strict=True)
        return [(-(-p // s), (size + p) // s) for size, s, p in sizes]


def _unravelled(positions: Tensor, extents: Sequence[tuple[int, int]]) -> list[Tensor]:
    places = []
    for first, last in reversed(extents):
        places.append(positions % (last - first))
        positions = positions // (last - first)
    return places[::-1]
