"""Taking channels out of one layer, with Torch-Pruning's slicing functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def cut_(model: nn.Module, layer: str, kind: str, side: str, dim: int, channels: Sequence[int]) -> None:
    """Take channels out of one side of one layer, or of a bare parameter, in place.

    Torch-Pruning's slicing functions do the work. Parameters become new objects.

    Parameters
    ----------
    model
        The network that holds the layer.
    layer, kind, side, dim
        As in :class:`mint_compress.channels.Member`; ``dim`` counts for a bare parameter only.
    channels
        The layer's own channels that go, without repetition.
    """
    if kind == "parameter":
        parameter = model.get_parameter(layer)
        parent, _, leaf = layer.rpartition(".")
        slicer = slicer_of(parameter, dim)
        setattr(model.get_submodule(parent), leaf, slicer.prune_out_channels(parameter, list(channels)))
        return
    module = model.get_submodule(layer)
    slicer = slicer_of(module)
    (slicer.prune_in_channels if side == "in" else slicer.prune_out_channels)(module, list(channels))


def slicer_of(module: Any, dim: int = -1) -> Any:
    """Torch-Pruning's slicing functions for a layer, or for dimension ``dim`` of a bare parameter."""
    import torch_pruning as tp

    slicer = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
    slicer.pruning_dim = dim
    return slicer
