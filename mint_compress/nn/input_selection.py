"""Layers that read some of the channels they are given: input features removed with nothing before them.

What makes a channel can usually be removed with it. Nothing in a network makes the pixels of an image
or the columns of a table, so the layer that reads them has to leave out those that are not worth reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import MintError, shown


class Selecting:
    """Mixed into a layer class: the layer reads the channels ``selected`` of its input, in that order.

    Attributes
    ----------
    selected
        ``(in_channels,)`` int64 buffer, ascending.
    """

    selected: Tensor
    channel_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own forward on the channels that it reads."""
        result: Tensor = super().forward(self.select(x))  # type: ignore[misc]
        return result

    def select(self, x: Tensor) -> Tensor:
        """The channels that the layer reads, of what it is given."""
        return x.index_select(self.channel_dim, self.selected)


class SelectingLinear(Selecting, nn.Linear):
    """A linear layer that reads some of the features it is given."""

    channel_dim = -1


class SelectingConv1d(Selecting, nn.Conv1d):
    """A convolution that reads some of the channels it is given."""

    channel_dim = -2


class SelectingConv2d(Selecting, nn.Conv2d):
    """A convolution that reads some of the channels it is given."""

    channel_dim = -3


CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SelectingLinear,
    nn.Conv1d: SelectingConv1d,
    nn.Conv2d: SelectingConv2d,
}


def can_select(layer: nn.Module) -> bool:
    """Whether the layer is, or can become, one that selects: a plain layer without channel groups."""
    return (type(layer) in CLASSES or isinstance(layer, Selecting)) and getattr(layer, "groups", 1) == 1


def make_selecting_(layer: nn.Module) -> Any:
    """Let a layer select among its input channels, in place; it selects all of them at first.

    The class is changed, as ``torch.nn.utils.parametrize`` does it, so that whoever holds the layer
    holds the selecting one. Parameters and their names stay.
    """
    selecting: Any = layer
    if not isinstance(layer, Selecting):
        weight: Any = layer.weight
        layer.__class__ = CLASSES[type(layer)]
        layer.register_buffer("selected", torch.arange(weight.shape[1], device=weight.device))
    return selecting


def selected(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies with its weights, of what it is given: all of it unless it selects."""
    return layer.select(inputs) if isinstance(layer, Selecting) else inputs


def selecting_layers(model: nn.Module) -> list[str]:
    """Qualified names of the layers that select."""
    return [name for name, layer in model.named_modules() if isinstance(layer, Selecting)]


def restore_selecting_(model: nn.Module, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Let the layers of a network that is rebuilt from a file select again, in place.

    Parameters
    ----------
    model
        As its builder made it.
    names
        From :func:`selecting_layers`.
    tensors
        The file's state_dict, whose selections are checked here and put in place elsewhere.

    Raises
    ------
    MintError
        A layer that cannot select, or a selection of channels that it is not given.
    """
    modules = dict(model.named_modules())
    for name in names:
        layer = modules.get(name)
        if layer is None or not can_select(layer):
            raise MintError(
                f"The file has a selecting layer {shown(name)!r}, which the architecture has not."
            )
        given = len(make_selecting_(layer).selected)
        chosen = tensors.get(f"{name}.selected")
        if chosen is None or not is_selection(chosen, given):
            raise MintError(
                f"{shown(name)}.selected does not choose among the {given} channels of its layer."
            )


def is_selection(chosen: Tensor, given: int) -> bool:
    """Whether ``chosen`` can be the buffer ``selected`` of a layer that is given so many channels."""
    if chosen.dtype != torch.int64 or chosen.ndim != 1 or not len(chosen):
        return False
    ascending = bool((chosen[1:] > chosen[:-1]).all())
    return ascending and int(chosen.min()) >= 0 and int(chosen.max()) < given
