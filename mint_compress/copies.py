"""A copy of a network that may be taken apart."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from mint_compress.errors import MintError, first_line

Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """All of it anew.

    Raises
    ------
    MintError
        It holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        # whatever an attribute of a user's module raises
        raise MintError(
            f"The network cannot be copied ({first_line(error)}). Where torch.nn.utils.weight_norm computes "
            "a weight, call remove_weight_norm first."
        ) from error


def bare_copy(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network itself, without what trains or compiles it, copied: on the CPU, in eval mode, in float32.

    Returns
    -------
    module, notes
        The copy, and a line about each change that is not plain to see.
    """
    while isinstance(inner := _inner(model), nn.Module):
        model = inner
    odd = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in odd))
    notes = (f"{names} weights converted to float32",) if odd else ()
    copy_of_it = copied(model).cpu().eval()
    return copy_of_it.float() if odd else copy_of_it, notes


def _inner(model: nn.Module) -> object:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)  # torch.compile's
