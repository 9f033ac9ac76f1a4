"""Paired samples of what a layer is given and gives: one value a channel and image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mint_compress.nn.input_selection import selected


class LayerSamples:
    """Collects the spatial means of one layer's inputs and outputs (MINT, section III-A)."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def add(self, inputs: Tensor, output: Tensor, images: int) -> None:
        """Take one call of the layer on a batch of that many images."""
        self._inputs.append(_image_means(self._layer, selected(self._layer, inputs), images))
        self._outputs.append(_image_means(self._layer, output, images))

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
