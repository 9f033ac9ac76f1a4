"""Which of a network's outputs a task is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.nn.io import tensors_in


def nth(outputs: Any, place: int) -> Tensor:
    """One of the tensors in what a network returned.

    Raises
    ------
    MintError
        There are not so many.
    """
    for number, tensor in enumerate(tensors_in(outputs)):
        if number == place:
            return tensor
    raise MintError(
        f"The network returns a {type(outputs).__name__} with fewer than {place + 1} tensors. "
        "Its outputs must be the same in number for all inputs."
    )


def place_of(outputs: Any, targets: Any, fits: Callable[[Tensor, Tensor], bool]) -> int:
    """The first tensor of floats that the targets fit; 0 where they fit none."""
    if isinstance(targets, Tensor):
        for number, tensor in enumerate(tensors_in(outputs)):
            if tensor.is_floating_point() and fits(tensor[:1], targets[:1]):
                return number
    return 0
