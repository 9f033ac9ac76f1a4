"""How many samples go through a network at a time: as many as leave what it makes on the way small."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mint_compress.errors import our_own
from mint_compress.nn.contexts import evaluating, hooked
from mint_compress.nn.io import Inputs, count, run, tensors_in

LARGEST = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Bytes of one layer's output for all samples. Above that a CPU's allocator asks the system for fresh memory
at every layer, and a network with large images spends more time on that than on arithmetic."""


def largest_output(model: nn.Module, sample: Inputs) -> int:
    """Bytes of the largest tensor that any module of the network gives for one sample of the batch."""
    largest = 1

    @our_own()
    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, *(x.numel() * x.element_size() for x in tensors_in(output)), 0)

    with hooked([m.register_forward_hook(see) for m in model.modules()]), evaluating(model), torch.no_grad():
        run(model, sample)
    return -(-largest // count(sample))


def samples_at_once(model: nn.Module, sample: Inputs, most: int) -> int:
    """``most`` samples, or as many as keep each layer's output within :data:`LARGEST`; 1 at least.

    ``sample`` is where the network is.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    bytes_at_most = LARGEST.get(device, LARGEST["cuda"])
    return max(1, min(most, bytes_at_most // largest_output(model, sample)))
