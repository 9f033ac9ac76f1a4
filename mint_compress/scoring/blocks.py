"""Blocks: positions that are scored, and go, as a whole."""

from __future__ import annotations

import torch
from torch import Tensor


def block_of(width: int, blocks: int) -> Tensor:
    """``(width,)`` block number of each position: contiguous, sizes differing by at most one."""
    count = width if blocks <= 0 else min(blocks, width)
    return (torch.arange(width) * count) // width
