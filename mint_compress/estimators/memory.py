"""How many pairs to work on at once, so that memory stays bounded whatever the layers' widths."""

from __future__ import annotations

import os

import torch

SHARE = 0.25
"""Share of the free memory that one block of pairs may take."""


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device now; for the CPU what the system calls available."""
    if device.type == "cuda":
        # what PyTorch holds in reserve is free for us too
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system counts its pages
        return 2**30


def at_once(bytes_each: int, device: torch.device, *, most: int | None = None) -> int:
    """Number of pairs, at least one, whose temporary arrays take a quarter of the free memory.

    Parameters
    ----------
    bytes_each
        Temporary memory of one pair.
    most
        An upper limit from elsewhere, such as what fits into a CPU's cache.
    """
    number = max(1, int(SHARE * free_memory(device)) // max(1, bytes_each))
    return number if most is None else max(1, min(number, most))
