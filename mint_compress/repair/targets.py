"""What a layer of the pruned network should give, so that the network does what the original does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.processes import by_main
from mint_compress.repair.layers_to_repair import LayerToRepair
from mint_compress.repair.network_pair import PassPair


def same_positions(layer: nn.Module, pair: PassPair | None) -> bool:
    """Whether the original applies the layer to as many places; not where places are channels that went.

    Of processes that share the work the main one tells, whose ``pair`` must not be None.
    """
    return by_main(lambda: pair is not None and _same_positions(layer, pair))


def _same_positions(layer: nn.Module, pair: PassPair) -> bool:
    shapes = [list(one.given().shape) for one in pair]
    for shape in shapes:
        shape[_channel_dim(layer)] = 0
    return shapes[0] == shapes[1]


def target(layer: LayerToRepair, pair: PassPair) -> Tensor:
    """The original's output; where a shortcut is added, also what that has lost on its way.

    Parameters
    ----------
    layer
        The layer that both passes have paused at.
    pair
        What was recorded for the layer is taken out of both passes.

    Returns
    -------
    Tensor
        As the layer's output, with the channels that it has left.
    """
    output = _kept_of(layer, layer.made(pair))
    if layer.shortcut is None:
        return output
    before = _kept_of(layer, pair.original.recorded.pop(layer.name))
    drift = before - pair.pruned.recorded.pop(layer.name)
    return output + drift * _scale(layer.norm, drift)


def _kept_of(layer: LayerToRepair, output: Tensor) -> Tensor:
    dim = _channel_dim(layer.module)
    if len(layer.kept) == output.shape[dim]:
        return output
    return output.index_select(dim, layer.kept.to(output.device))


def _scale(norm: Any, drift: Tensor) -> Tensor:
    """How much the layer must give for the sum behind its BatchNorm to change by one."""
    if norm is None:
        return drift.new_ones(())
    gamma: Tensor | None = norm.weight
    # copies of FrozenBatchNorm2d write theirs into the forward pass
    scale: Tensor = (norm.running_var + getattr(norm, "eps", 1e-5)).sqrt()
    if gamma is not None:
        strong = gamma.abs() > 1e-2 * gamma.abs().max()
        scale = torch.where(strong, scale / gamma, 0.0)  # a channel that is hardly used stays as it is
    return scale.detach().reshape(-1, *(1,) * (drift.ndim - 2))


def _channel_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1
