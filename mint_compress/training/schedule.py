"""The learning rate over a training."""

from __future__ import annotations

import math

WARMUP = 0.15
"""Share of the steps in which the learning rate rises; short, as a repaired network is nearly there."""


def one_cycle(step: int, steps: int) -> float:
    """Share of the highest learning rate at ``step`` of ``steps``: a linear rise, then half a cosine."""
    at = (step + 0.5) / steps
    return at / WARMUP if at < WARMUP else 0.5 * (1 + math.cos(math.pi * (at - WARMUP) / (1 - WARMUP)))
