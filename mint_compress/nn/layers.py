"""One view of a layer: its kind, its sizes, and where its channels are, whatever kind of layer it is."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mint_compress.nn.recurrent import RECURRENT

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

WEIGHTED = (*CONVOLUTIONS, nn.Linear)
"""Layers that multiply with a matrix: those that this program prunes and repairs."""


class _HoldsStatistics(type):
    """Its instances are all modules whose name ends so (DetrFrozenBatchNorm2d) and hold a norm as buffers."""

    def __instancecheck__(cls, module: object) -> bool:
        held = {n: b for n, b in getattr(module, "_buffers", {}).items() if b is not None}
        named = type(module).__name__.endswith(FROZEN) and {*STATISTICS} <= held.keys()
        return named and len({held[name].shape for name in STATISTICS}) == 1


FROZEN = "FrozenBatchNorm2d"
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class FrozenBatchNorm(nn.Module, metaclass=_HoldsStatistics):
    """BatchNorm that is never trained, as torchvision's detectors have it, and others a copy of their own."""

    weight: Tensor


OVER_CHANNELS = (nn.LayerNorm, nn.RMSNorm)
"""Normalisations over the last dimensions: with some channels gone, over those that are left."""
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    FrozenBatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    *OVER_CHANNELS,
    nn.PReLU,
)
"""Layers in which one channel is input and output at once."""


# ---- kinds


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution in which each output reads one input of its own."""
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.out_channels == layer.in_channels


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution, whose weight has its input channels first."""
    return bool(getattr(layer, "transposed", False))


# ---- sizes


def in_channels(layer: Any) -> int:
    """Input channels of a convolution, input features of a linear layer, inputs of a recurrent one."""
    if isinstance(layer, RECURRENT):
        return int(layer.input_size)
    return int(layer.in_channels if isinstance(layer, CONVOLUTIONS) else layer.in_features)


def matrix_columns(layer: nn.Module) -> int:
    """Rows of inputs have so many columns: (channel, kernel position) of one channel group."""
    return in_channels(layer) * taps(layer) // channel_groups(layer)


def out_channels(layer: Any) -> int:
    """Output channels of a convolution or output features of a linear layer."""
    return int(layer.out_channels if isinstance(layer, CONVOLUTIONS) else layer.out_features)


def channel_groups(layer: nn.Module) -> int:
    """Channel groups of a grouped convolution, 1 for everything else."""
    return int(layer.groups) if isinstance(layer, CONVOLUTIONS) else 1


def taps(layer: nn.Module) -> int:
    """Columns per input channel: the kernel's size for a convolution, 1 for a linear layer."""
    return math.prod(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 1  # type: ignore[arg-type]


def fan_in(layer: nn.Module) -> int:
    """Weights that each output channel of a layer has."""
    return in_channels(layer) * taps(layer) // channel_groups(layer)


def norm_width(layer: Any) -> int:
    """Channels of a normalisation layer or of a PReLU."""
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if hasattr(layer, attribute):
            return int(getattr(layer, attribute))
    return int(layer.weight.shape[0] if isinstance(layer, FrozenBatchNorm) else layer.normalized_shape[-1])


def side_channels(layer: Any, kind: str, side: str, dim: int) -> int:
    """Channels on one side of a layer, or along ``dim`` of a bare parameter."""
    if kind in ("conv", "depthwise", "linear", "recurrent"):
        return in_channels(layer) if side == "in" else out_channels(layer)
    if kind == "parameter":
        return int(layer.shape[dim])
    return int(layer.weight.shape[-1] if kind == "embedding" else norm_width(layer))


def rows_beside(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a layer beside weight and bias with a row for every output, such as a gain, by name."""
    if not isinstance(layer, WEIGHTED):
        return {}
    own, outputs = layer.named_parameters(recurse=False), out_channels(layer)
    return {n: p for n, p in own if n not in ("weight", "bias") and p.ndim and len(p) == outputs}


# ---- what a convolution or a linear layer is given, and gives


def channel_dim(layer: nn.Module) -> int:
    """The dimension of a layer's inputs and outputs in which its channels are."""
    return -1 if isinstance(layer, nn.Linear) else 1


def by_place(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Inputs or outputs of a layer as ``(batch, channels, places)``: places are pixels, or tokens."""
    if isinstance(layer, nn.Linear):
        return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).transpose(1, 2)
    return tensor.flatten(2)


def mean_over_places(layer: nn.Module, tensor: Tensor) -> Tensor:
    """``(batch, channels)``: the mean over pixels, or over tokens."""
    return by_place(layer, tensor).mean(2)
