"""Taking channels out of one layer, and telling the modules around it what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mint_compress.errors import MintError
from mint_compress.nn.input_selection import make_selecting_
from mint_compress.nn.layers import (
    OVER_CHANNELS,
    STATISTICS,
    FrozenBatchNorm,
    channel_groups,
    is_transposed,
    norm_width,
    rows_beside,
)
from mint_compress.nn.recurrent import RECURRENT, input_weights
from mint_compress.surgery.layer_sizes import size_attributes


class CannotCut(MintError):
    """A layer that Torch-Pruning has no right way to cut."""


def cut_(model: nn.Module, layer: str, kind: str, side: str, dim: int, channels: Sequence[int]) -> None:
    """Take channels out of one side of one layer, or of a bare parameter, in place.

    Torch-Pruning's slicing functions do the work. Parameters become new objects.

    Parameters
    ----------
    model
        The network that holds the layer.
    layer, kind, side, dim
        As in :class:`mint_compress.graph.groups.Member`; ``dim`` counts for a bare parameter only.
    channels
        The layer's own channels that go, without repetition.

    Raises
    ------
    CannotCut
        From :func:`check_cut`; nothing is changed then.
    """
    if kind == "parameter":
        parameter = model.get_parameter(layer)
        parent, _, leaf = layer.rpartition(".")
        slicer = slicer_of(parameter, kind, dim)
        setattr(model.get_submodule(parent), leaf, slicer.prune_out_channels(parameter, list(channels)))
        return
    module = model.get_submodule(layer)
    check_cut(module, layer, kind)
    slicer = slicer_of(module, kind)
    if kind == "selection":
        selecting = make_selecting_(module)
        stays = torch.ones(len(selecting.selected), dtype=torch.bool, device=selecting.selected.device)
        stays[list(channels)] = False
        selecting.selected = selecting.selected[stays]
    beside = rows_beside(module) if side != "in" else {}
    (slicer.prune_in_channels if side == "in" else slicer.prune_out_channels)(module, list(channels))
    for name, parameter in beside.items():
        kept = _others(len(parameter), channels)
        setattr(module, name, nn.Parameter(parameter.detach()[kept]))


def check_cut(module: nn.Module, layer: str, kind: str) -> None:
    """Refuse a layer that would be cut wrongly: Torch-Pruning takes its channel groups for rows.

    Parameters
    ----------
    module, layer
        The layer, and its name.
    kind
        ``depthwise`` layers have one channel in each group, which goes as a whole.

    Raises
    ------
    CannotCut
        A transposed convolution with channel groups.
    """
    if kind == "conv" and is_transposed(module) and channel_groups(module) > 1:
        raise CannotCut(f"{type(module).__name__} with channel groups cannot be cut ({layer})")


def adapt_(model: nn.Module) -> None:
    """Set the sizes that a forward pass reads from attributes, after layers were cut, in place.

    Attention modules keep the number of their heads, and torchvision's vision transformer its width.
    Only attributes that a saved file carries are set
    (:func:`mint_compress.surgery.layer_sizes.size_attributes`); a network that reads others fails its
    trial removal.
    """
    for module in model.modules():
        names = size_attributes(module)
        if "hidden_dim" in names and isinstance(getattr(module, "conv_proj", None), nn.Conv2d):
            module.hidden_dim = module.conv_proj.out_channels  # type: ignore[union-attr, assignment]
        if "num_heads" in names and isinstance(getattr(module, "qkv", None), nn.Linear):
            _adapt_heads(module)


def _adapt_heads(module: Any) -> None:
    """Heads of an attention module whose queries, keys and values one layer makes."""
    dim = module.qkv.out_features // 3
    table = getattr(module, "relative_position_bias_table", None)
    if table is not None:
        module.num_heads = int(table.shape[-1])
    elif hasattr(module, "head_dim"):
        module.num_heads = dim // module.head_dim
        if hasattr(module, "attn_dim"):
            module.attn_dim = dim


def slicer_of(module: Any, kind: str | None = None, dim: int = -1) -> Any:
    """Torch-Pruning's slicing functions for a layer, or for dimension ``dim`` of a bare parameter.

    The kind of a convolution comes from the group: one of whose channel groups only one output is
    left looks depthwise, and would lose its inputs together with outputs.
    """
    import torch_pruning as tp

    if isinstance(module, FrozenBatchNorm):
        return _OfFrozenNorms()
    if isinstance(module, RECURRENT):
        return _OfRecurrentLayers()
    if isinstance(module, OVER_CHANNELS):
        return _OverChannels()
    kinds = {"conv": tp.ops.OPTYPE.CONV, "depthwise": tp.ops.OPTYPE.DEPTHWISE_CONV}
    slicer = tp.pruner.function.PrunerBox[kinds[kind] if kind in kinds else tp.ops.module2type(module)]
    slicer.pruning_dim = dim
    return slicer


class _OfNorms:
    """As Torch-Pruning's slicers, for normalisations that it has none for."""

    def prune_out_channels(self, module: Any, channels: Sequence[int]) -> None:
        raise NotImplementedError

    def prune_in_channels(self, module: Any, channels: Sequence[int]) -> None:
        self.prune_out_channels(module, channels)

    def get_out_channels(self, module: nn.Module) -> int:
        return norm_width(module)

    get_in_channels = get_out_channels


class _OfFrozenNorms(_OfNorms):
    """Of those held in buffers."""

    def prune_out_channels(self, module: Any, channels: Sequence[int]) -> None:
        for name in STATISTICS:
            values = module.get_buffer(name)
            setattr(module, name, values[_others(len(values), channels)])


class _OverChannels(_OfNorms):
    """Of the last dimension. Torch-Pruning 1.6.1 puts the channels of a LayerNorm into the order of a set."""

    def prune_out_channels(self, module: Any, channels: Sequence[int]) -> None:
        *wider, width = module.normalized_shape
        kept = _others(width, channels)
        module.normalized_shape = (*wider, len(kept))
        for name, parameter in list(module.named_parameters(recurse=False)):
            cut = nn.Parameter(parameter.detach()[..., kept], requires_grad=parameter.requires_grad)
            setattr(module, name, cut)


class _OfRecurrentLayers:
    """Of the inputs, which alone can go."""

    def prune_in_channels(self, module: Any, channels: Sequence[int]) -> None:
        kept = _others(module.input_size, channels)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [*module._flat_weights]  # it is changed with each parameter, in place
        for name, weight in input_weights(module).items():
            setattr(module, name, nn.Parameter(weight.detach()[:, kept]))
        module.input_size = len(kept)

    def get_in_channels(self, module: Any) -> int:
        return int(module.input_size)


def _others(width: int, channels: Sequence[int]) -> list[int]:
    gone = set(channels)
    return [i for i in range(width) if i not in gone]
