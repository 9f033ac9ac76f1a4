"""Where in memory channels lie: last is faster, on GPUs and on most CPUs, for networks that take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mint_compress.errors import ForeignError
from mint_compress.nn.contexts import evaluating, seeded
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, mapped, run, select, to


def lay_out_(model: nn.Module, layout: torch.memory_format) -> None:
    """Give the kernels of two-dimensional convolutions this layout."""
    # not by Module.to, which fails on the five dimensions of a Conv3d
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=layout)


def laid_out(images: Inputs, layout: torch.memory_format) -> Inputs:
    """Images in this layout; inputs that are no images as they are."""
    return mapped(images, lambda x: x.to(memory_format=layout) if x.ndim == 4 else x)


def take_channels_last(networks: Sequence[nn.Module], images: Inputs, device: torch.device) -> bool:
    """Whether all have convolutions to speed up, and none a ``view`` that channels-last memory forbids."""
    if not all(any(p.ndim == 4 for p in network.parameters()) for network in networks):
        return False
    try:
        for network in networks:
            with evaluating(network), torch.no_grad(), seeded(0, device):
                run(network, laid_out(images, torch.channels_last))
    except ForeignError:  # mostly that view; anything else fails again when it trains
        return False
    return True


@contextmanager
def fastest_layout(networks: Sequence[nn.Module], images: Inputs) -> Iterator[torch.memory_format]:
    """While the block lasts, kernels lie as is fastest; what it yields is the layout for images.

    The first of ``images`` are there to try it with. Weights may change in the block.
    """
    changed = [p for network in networks for p in network.parameters() if p.is_contiguous()]

    def put_back() -> None:
        for parameter in changed:
            parameter.data = parameter.data.contiguous()

    for network in networks:  # before it is tried: kernels decide how outputs lie as much as images do
        lay_out_(network, torch.channels_last)
    try:
        device = device_of(networks[0])
        if take_channels_last(networks, to(select(images, slice(2)), device), device):
            yield torch.channels_last
        else:
            put_back()
            yield torch.contiguous_format
    finally:
        put_back()
