"""Recurrent layers by what they read: a linear map from a step's inputs to the gates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells. Only their inputs can go."""
LEAVES = ("weight", "bias")
KINDS = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
"""Those whose forward passes multiply the inputs as they are; what is derived from them may do otherwise."""


def input_weights(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that multiply the inputs, ``(gates, inputs)`` each, by name: one a direction."""
    return _of_inputs(layer, "weight")


def input_projection(layer: nn.Module) -> nn.Linear:
    """A linear layer of its own that gives what a recurrent layer makes of its inputs, for all gates."""
    weights, biases = ([p.detach() for p in _of_inputs(layer, leaf).values()] for leaf in LEAVES)
    weight = torch.cat(weights)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        made.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return made


def reader(layer: nn.Module) -> nn.Module:
    """The layer itself, or what multiplies the inputs of a recurrent one."""
    return input_projection(layer) if isinstance(layer, RECURRENT) else layer


def read_and_made(layer: nn.Module, inputs: Any, output: Any) -> tuple[Tensor, Tensor]:
    """What a layer's :func:`reader` was given in a call, and what it gave, the samples first."""
    if not isinstance(layer, RECURRENT):
        return inputs, output
    read = batch_first(layer, inputs)
    with torch.no_grad():
        return read, input_projection(layer)(read)


def is_usual(layer: nn.Module) -> bool:
    """Whether the layer's forward pass is PyTorch's own."""
    return any(type(layer).forward is kind.forward for kind in KINDS)


def set_input_projection_(layer: nn.Module, projection: nn.Linear) -> None:
    """Write the weights of such a linear layer into the recurrent one, in place."""
    with torch.no_grad():
        for leaf in LEAVES:
            owns, whole = _of_inputs(layer, leaf).values(), getattr(projection, leaf)
            for own, part in zip(owns, whole.chunk(len(owns)) if owns else (), strict=True):
                own.copy_(part)


def _of_inputs(layer: nn.Module, leaf: str) -> dict[str, nn.Parameter]:
    names = {f"{leaf}_ih", f"{leaf}_ih_l0", f"{leaf}_ih_l0_reverse"}
    return {name: own for name, own in layer.named_parameters(recurse=False) if name in names}


def batch_first(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a recurrent layer was given, with the samples before the steps; without any they are added."""
    if isinstance(layer, nn.RNNCellBase):
        return inputs if inputs.ndim == 2 else inputs[None]
    if inputs.ndim == 2:
        return inputs[None]
    return inputs if layer.batch_first else inputs.transpose(0, 1)


def macs_of_call(layer: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulate operations of one call: every step multiplies with every weight once."""
    weights = [own for name, own in layer.named_parameters(recurse=False) if name.startswith("weight")]
    return math.prod(inputs.shape[:-1]) * sum(own.numel() for own in weights)
