"""Where and in which precision a training computes, alone or with other processes: accelerate's part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def accelerated(device: torch.device) -> Iterator[Accelerator]:
    """An accelerator for ``device``; the state that accelerate keeps per process is restored after.

    That state fixes device and precision once; without this, a second training in one process could
    not run elsewhere, and an accelerator of the caller's own would be changed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states: list[dict[str, Any]] = [s._shared_state for s in (PartialState, AcceleratorState, GradientState)]
    saved = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield Accelerator(cpu=device.type != "cuda", mixed_precision=_precision(device))
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)


def _precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # pays only where the processor multiplies bf16 natively and the network is wide: the user's choice
    return "bf16" if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16" else "no"
