"""Label maps: a class number for every pixel, and the values that stand for no class."""

from __future__ import annotations

import torch
from torch import Tensor

NO_CLASS = -100
"""What a pixel without a class is given: the value that PyTorch's cross-entropy ignores by itself."""
VOID = 255
"""The same in the label maps of Pascal VOC, Cityscapes and others; images of bytes have no -100."""


def class_numbers(labels: Tensor, *, outputs: int = 0) -> Tensor:
    """Labels as int64, with `NO_CLASS` wherever a pixel of a label map belongs to none.

    Parameters
    ----------
    labels
        (n,) or label maps (n, H, W), integers of any type. Where there is one label a sample, every one
        is taken for a class.
    outputs
        Classes that a network tells apart, as far as they are known: with more than 255 of them, 255 is
        one like the others.
    """
    numbers = labels.long()
    if numbers.ndim < 2 or outputs > VOID:
        return numbers
    return numbers.masked_fill(numbers == VOID, NO_CLASS)


def with_class(numbers: Tensor) -> Tensor:
    """Which of the numbers that :func:`class_numbers` gives stand for a class, as booleans."""
    return numbers != NO_CLASS if numbers.ndim > 1 else torch.ones_like(numbers, dtype=torch.bool)
