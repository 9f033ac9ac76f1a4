"""Paired samples of what a layer is given and gives: one value a channel and image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mint_compress import processes
from mint_compress.nn.devices import device_of
from mint_compress.nn.input_selection import selected


class LayerSamples:
    """Collects the spatial means of one layer's inputs and outputs (MINT, section III-A)."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._batches: list[int] = []

    def add(self, inputs: Tensor, output: Tensor, images: int, batch: int) -> None:
        """Take one call of the layer on a batch of that many images; batches are numbered."""
        self._inputs.append(_image_means(self._layer, selected(self._layer, inputs), images))
        self._outputs.append(_image_means(self._layer, output, images))
        self._batches.append(batch)

    def add_up_(self) -> None:
        """Take in the calls of all processes, in the order of the batches."""
        means = ([each.cpu() for each in side] for side in (self._inputs, self._outputs))
        own = list(zip(self._batches, *means, strict=True))
        calls = [call for theirs in processes.gathered(own) for call in theirs]
        calls.sort(key=lambda call: call[0])  # stable: a layer may be called several times for a batch
        device = device_of(self._layer)
        self._batches = [call[0] for call in calls]
        self._inputs = [call[1].to(device) for call in calls]
        self._outputs = [call[2].to(device) for call in calls]

    def result(self) -> tuple[Tensor, Tensor]:
        """``(n, C_in)`` and ``(n, C_out)``, paired row by row."""
        return torch.cat(self._inputs), torch.cat(self._outputs)


def _image_means(layer: nn.Module, tensor: Tensor, images: int) -> Tensor:
    """One value a channel and image: the mean over space, or over tokens for a linear layer.

    Over the windows as well where a network cuts images into such, one after the other along the batch.
    """
    means = _spatial_means(layer, tensor)
    windows = len(means) // images if images and len(means) % images == 0 else 1
    return means.reshape(-1, windows, means.shape[1]).mean(1)


def _spatial_means(layer: nn.Module, tensor: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).mean(1)
    return tensor.flatten(2).mean(2)
