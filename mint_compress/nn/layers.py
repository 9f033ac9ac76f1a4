"""One view of a layer: which side has how many channels, whatever kind of layer it is."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


WEIGHTED = (*CONVOLUTIONS, nn.Linear)


NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)
"""Layers in which one channel is input and output at once."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution in which each output reads one input of its own."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels


def taps(layer: nn.Module) -> int:
    """Columns per input channel: the kernel's size for a convolution, 1 for a linear layer."""
    return math.prod(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 1  # type: ignore[arg-type]


def channel_groups(layer: nn.Module) -> int:
    """Channel groups of a grouped convolution, 1 for everything else."""
    return int(layer.groups) if isinstance(layer, CONVOLUTIONS) else 1


def in_channels(layer: Any) -> int:
    """Input channels of a convolution or input features of a linear layer."""
    return int(layer.in_channels if isinstance(layer, CONVOLUTIONS) else layer.in_features)


def matrix_columns(layer: nn.Module) -> int:
    """Rows of inputs have so many columns: (channel, kernel position) of one channel group."""
    return in_channels(layer) * taps(layer) // channel_groups(layer)


def out_channels(layer: Any) -> int:
    """Output channels of a convolution or output features of a linear layer."""
    return int(layer.out_channels if isinstance(layer, CONVOLUTIONS) else layer.out_features)


def rows_beside(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a layer beside weight and bias with a row for every output, such as a gain, by name."""
    if not isinstance(module, WEIGHTED):
        return {}
    own = module.named_parameters(recurse=False)
    outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return {n: p for n, p in own if n not in ("weight", "bias") and p.ndim and len(p) == outputs}


def side_channels(module: Any, kind: str, side: str, dim: int) -> int:
    """Channels on one side of a layer, or along ``dim`` of a bare parameter."""
    if kind in ("conv", "depthwise", "linear"):
        return in_channels(module) if side == "in" else out_channels(module)
    if kind == "parameter":
        return int(module.shape[dim])
    return int(module.weight.shape[-1] if kind == "embedding" else norm_width(module))


def norm_width(module: Any) -> int:
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    return int(module.normalized_shape[-1])
