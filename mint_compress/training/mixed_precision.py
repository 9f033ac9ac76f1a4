"""In which precision a training computes: PyTorch's automatic mixed precision, where it pays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class MixedPrecision:
    """Forward and backward passes and steps in the precision that suits a device.

    Nothing of it is kept beyond a training: another one may compute elsewhere, and otherwise.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._dtype = device, _dtype(device)
        self.scaler = torch.amp.GradScaler(device.type) if self._dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager[object]:
        """What a forward pass and its loss run in."""
        return torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add up gradients, scaled where the precision needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], most: float) -> None:
        """Step along the gradients, scaled down to the norm ``most``."""
        if self.scaler is None:
            nn.utils.clip_grad_norm_(parameters, most)
            optimizer.step()
            return
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, most)
        self.scaler.step(optimizer)
        self.scaler.update()


def _dtype(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # pays only where the processor multiplies bf16 natively and the network is wide: the user's choice
    return torch.bfloat16 if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16" else None
