"""Where in memory channels lie: last is faster, on GPUs and on most CPUs, for networks that take it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mint_compress.errors import ForeignError
from mint_compress.nn.contexts import evaluating, seeded
from mint_compress.nn.io import Inputs, mapped, run


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
