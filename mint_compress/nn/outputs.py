"""What a network returns: all its tensors, and the logits among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mint_compress.errors import MintError


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors of a nested output, in the order in which an export lists them.

    Parameters
    ----------
    output
        A tensor, or mappings, lists and tuples of such; everything else is passed over.

    Yields
    ------
    Tensor
        Depth first, mappings in the order of their keys' insertion.
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)


def first_tensor(output: Any) -> Tensor:
    """The logits in what a network returned: the first of its tensors.

    Raises
    ------
    MintError
        When there is none.
    """
    for tensor in tensors_in(output):
        return tensor
    raise MintError(f"The network returns a {type(output).__name__} without a tensor; logits are needed.")
