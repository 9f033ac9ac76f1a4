"""Which device to compute on, and random numbers that leave the global state as it was."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from mint_compress.errors import MintError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str | torch.device) -> torch.device:
    """The device behind ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA where there is one.

    Raises
    ------
    MintError
        For an unknown name, and for a CUDA device that this machine or this PyTorch does not have.
    """
    text = str(name)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise MintError(f"Unknown device {text!r}. Choose from: {', '.join(DEVICES)}, cuda:N.") from None
    if device.type not in DEVICES:
        raise MintError(f"Unknown device {text!r}. Choose from: {', '.join(DEVICES)}, cuda:N.")
    if device.type == "cuda":
        _check_cuda(device)
    return device


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        reason = "this PyTorch is built without it" if torch.version.cuda is None else "no GPU answers"
        raise MintError(f"Device {str(device)!r} asked for, but CUDA is missing ({reason}). Use cpu or auto.")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise MintError(
            f"Device {str(device)!r} asked for, but the last GPU is cuda:{torch.cuda.device_count() - 1}."
        )


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer lives; the CPU for a module that has neither."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
