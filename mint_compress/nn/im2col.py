"""A convolution or linear layer as the linear map it is: rows of inputs, rows of outputs, one matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.nn.input_selection import selected
from mint_compress.nn.layers import CONVOLUTIONS, by_place, channel_groups, is_transposed


def weight_matrix(layer: nn.Module) -> Tensor:
    """The weight as ``(groups, columns, outputs)`` float64, so that ``rows @ matrix + bias`` is the output.

    Columns are ordered by input channel, then by kernel position. For a transposed convolution the
    outputs are every (channel, kernel position) that one input pixel contributes to.
    """
    weight = layer.weight.detach().double()  # type: ignore[operator, union-attr]
    groups = channel_groups(layer)
    if is_transposed(layer):
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def set_weight_matrix(layer: nn.Module, matrix: Tensor) -> None:
    """Write ``(groups, columns, outputs)`` back into the layer's weight, in place."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.copy_(matrix.transpose(1, 2).reshape(weight.shape))


def output_positions(layer: nn.Module, output: Tensor) -> int:
    """How many places of one sample the layer's matrix is applied to (pixels, tokens)."""
    if isinstance(layer, CONVOLUTIONS):
        return math.prod(output.shape[2:])
    return math.prod(output.shape[1:-1])


def sample_positions(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """``wanted`` of ``count`` positions without repetition, ascending; all of them when they are fewer."""
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:wanted].sort().values


def input_rows(layer: nn.Module, inputs: Tensor, output: Tensor, positions: Tensor) -> Tensor:
    """What the layer's matrix is multiplied with at the given output positions.

    Parameters
    ----------
    inputs, output
        The layer's input and output, batch first.
    positions
        ``(m,)`` indices into the flattened output positions, the same for every sample.

    Returns
    -------
    Tensor
        ``(groups, batch * m, columns)`` in the inputs' dtype.
    """
    positions, inputs = positions.to(inputs.device), selected(layer, inputs)
    if not isinstance(layer, CONVOLUTIONS):
        return output_rows(layer, inputs, positions)  # a row is a place
    pads = list(layer._reversed_padding_repeated_twice)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, pads, mode=mode) if any(pads) else inputs
    index = _patch_index(layer, output.shape[2:], padded.shape[2:], positions)
    groups, rows = layer.groups, inputs.shape[0] * len(positions)
    pixels = padded.flatten(2).transpose(1, 2)
    if pixels.is_contiguous():  # channels last: whole pixels are copied
        picked = pixels.index_select(1, index.flatten())
        picked = picked.reshape(rows, index.shape[1], groups, -1)
        return picked.permute(2, 0, 3, 1).reshape(groups, rows, -1)
    picked = pixels.transpose(1, 2).index_select(2, index.flatten())
    picked = picked.reshape(inputs.shape[0], groups, -1, *index.shape)
    return picked.permute(1, 0, 3, 2, 4).reshape(groups, rows, -1)


def _patch_index(layer: Any, output_shape: Any, padded_shape: Any, positions: Tensor) -> Tensor:
    """``(m, taps)`` flat indices into the padded input of every patch element."""
    index = torch.zeros(len(positions), 1, dtype=torch.long, device=positions.device)
    places, rest = [], positions
    for size in reversed(output_shape):
        places.append(rest % size)
        rest = rest // size
    for dim, place in enumerate(reversed(places)):
        offsets = torch.arange(layer.kernel_size[dim], device=positions.device) * layer.dilation[dim]
        along = place[:, None] * layer.stride[dim] + offsets
        index = (index[:, :, None] * padded_shape[dim] + along[:, None, :]).flatten(1)
    return index


def output_rows(layer: nn.Module, output: Tensor, positions: Tensor) -> Tensor:
    """The layer's output at the given positions, ``(groups, batch * m, outputs)``."""
    groups, positions = channel_groups(layer), positions.to(output.device)
    picked = by_place(layer, output).index_select(2, positions)
    picked = picked.reshape(output.shape[0], groups, -1, len(positions))
    return picked.permute(1, 0, 3, 2).reshape(groups, -1, picked.shape[2])


def is_plain(layer: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether the layer really is ``rows @ matrix + bias``; a subclass may pad or rescale on its own."""
    if is_transposed(layer):
        return False
    count = output_positions(layer, output)
    positions = torch.unique(torch.tensor([0, count // 2, count - 1]))
    try:
        rows = input_rows(layer, inputs[:1], output[:1], positions)
        ours = rows.double() @ weight_matrix(layer)
    except (RuntimeError, IndexError):
        return False
    bias = layer.bias
    if bias is not None:
        ours = ours + bias.detach().double().reshape(ours.shape[0], 1, -1)  # type: ignore[operator, union-attr]
    return agrees(ours, output_rows(layer, output[:1], positions).double())


def agrees(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are the same, up to what single precision makes of a long sum."""
    scale = theirs.abs().max().clamp_min(1e-6)
    return ours.shape == theirs.shape and bool(((ours - theirs).abs().max() / scale) < 1e-2)
