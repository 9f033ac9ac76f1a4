"""A copy of a network that may be taken apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from mint_compress.errors import ForeignError, first_line
from mint_compress.nn.folding import computed_weights

Network = TypeVar("Network", bound=nn.Module)


def copied(model: Network) -> Network:
    """All of it anew; tensors that a forward pass has left on a module are copied without their history.

    Raises
    ------
    MintError
        It holds something that cannot be copied.
    """
    left = {id(t): t.detach().clone() for m in model.modules() for t in _left_behind(m)}
    try:
        return copy.deepcopy(model, dict[int, Any](left))
    except Exception as error:  # whatever an attribute of a user's module raises
        raise ForeignError(
            f"The network cannot be copied ({first_line(error)}). Where a module of yours computes a weight "
            "from others, make it a parameter first."
        ) from error


def _left_behind(module: nn.Module) -> Iterator[torch.Tensor]:
    """Tensors with a history among a module's attributes: activations kept for a plot or for a skip.

    A weight that is computed from others has one too, and is not meant, it must not become a constant: unless
    a hook computes it anew before each forward pass.
    """
    computed = set[str]()
    if not any(computed_weights(module)):
        computed = {
            name.rpartition("_")[0] for name in module._parameters if name.endswith(("_g", "_v", "_orig"))
        }
    for name, value in vars(module).items():
        if name not in computed and name not in ("_parameters", "_buffers", "_modules"):
            yield from _with_history(value, depth=3)


def _with_history(value: Any, *, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _with_history(part, depth=depth - 1)


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
