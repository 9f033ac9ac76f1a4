"""What a network is given: one tensor, several by position, or several by name, all with the batch first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mint_compress.errors import MintError, foreign
from mint_compress.nn.devices import device_of

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One batch: ``model(x)``, ``model(*inputs)`` or ``model(**inputs)``."""

InputShape = tuple[int, ...] | tuple[tuple[int, ...], ...] | dict[str, tuple[int, ...]]
"""The shape of one sample of each input, without the batch."""


def of_batch(batch: Any) -> Inputs:
    """The inputs of a batch: what stands first in (inputs, labels); a tensor or a mapping as it is."""
    first = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(first, Mapping):
        return dict(first)
    return tuple(first) if isinstance(first, list) else first


def run(model: Callable[..., Any], inputs: Inputs | tuple[Any, ...]) -> Any:
    """Call a network: several inputs by position, those of a dict by name.

    Whoever runs a network of the user's does it here, so that its faults are told from ours. Hooks of
    ours that the call runs into must be wrapped in :func:`mint_compress.errors.our_own`.

    Raises
    ------
    ForeignError
        Whatever the network's forward pass raises is the ``__cause__``.
    """
    with foreign("The network's forward pass"):
        if isinstance(inputs, Tensor):
            return model(inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """All tensors, in their order; what an optional argument has instead of one is passed over."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return tuple(x for x in values if isinstance(x, Tensor))


def count(inputs: Inputs) -> int:
    """Samples in the batch."""
    return int(tensors(inputs)[0].shape[0])


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """``change`` done to every tensor."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: change(x) for name, x in inputs.items()}
    return tuple(change(x) for x in inputs)


def to(inputs: Inputs, device: torch.device | str) -> Inputs:
    """On ``device``."""
    return mapped(inputs, lambda x: x.to(device))


def select(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """Some samples of the batch, by their numbers or as a slice."""
    return mapped(inputs, lambda x: x[rows])


def split(inputs: Inputs, size: int) -> list[tuple[Inputs, None]]:
    """Batches of ``size`` without labels; as pairs, since two tensors alone would be inputs and labels."""
    starts = range(0, count(inputs), size)
    return [(select(inputs, slice(start, start + size)), None) for start in starts]


def concatenate(parts: Sequence[Inputs]) -> Inputs:
    """One batch of several, which must be of one kind; one alone is not copied."""
    first = parts[0]
    if len(parts) == 1:
        return first
    columns = [torch.cat(column) for column in zip(*map(tensors, parts), strict=True)]
    if isinstance(first, Tensor):
        return columns[0]
    return dict(zip(first, columns, strict=True)) if isinstance(first, dict) else tuple(columns)


def shape_of(inputs: Inputs) -> InputShape:
    """Shape of one sample, of each input."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape[1:])
    if isinstance(inputs, dict):
        return {name: tuple(x.shape[1:]) for name, x in inputs.items()}
    return tuple(tuple(x.shape[1:]) for x in inputs)


def is_single(shape: InputShape) -> TypeGuard[tuple[int, ...]]:
    """Whether this is the shape of one tensor alone."""
    return not isinstance(shape, dict) and all(isinstance(size, int) for size in shape)


def describe(shape: InputShape) -> str:
    """For a person: ``3x32x32``, ``3x32x32 + 10``, or ``x 3x32x32 + mask 10``."""
    if is_single(shape):
        return "x".join(map(str, shape)) or "scalar"
    if isinstance(shape, dict):
        return " + ".join(f"{name} {describe(each)}" for name, each in shape.items())
    return " + ".join(describe(each) for each in shape)  # type: ignore[arg-type]


@contextmanager
def by_position(model: nn.Module, inputs: Inputs) -> Iterator[tuple[Tensor, ...]]:
    """Lend the tensors as positional inputs; meanwhile ``model``, and copies of it, take a dict's so.

    Whoever analyses a network calls ``model(*inputs)``. Names that go by keyword only, or into
    ``**kwargs``, have no position of their own: the order of the dict gives them one.
    """
    if not isinstance(inputs, dict):
        yield tensors(inputs)
        return
    names = tuple(inputs)
    own = {key: value for key, value in vars(model).items() if key == "forward"}

    def positional(self: nn.Module, *values: Any) -> Any:
        return type(self).forward(self, **dict(zip(names, values, strict=True)))

    # a bound method, so that a deep copy's runs the copy and not the model it was copied from
    vars(model)["forward"] = MethodType(positional, model)
    try:
        yield tensors(inputs)
    finally:
        del vars(model)["forward"]
        vars(model).update(own)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors of a nested output, in the order in which an export lists them.

    Parameters
    ----------
    output
        A tensor, or mappings, lists, tuples and dataclasses of such; everything else is passed over.

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
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))


def with_tensors(output: Any, given: Iterator[Tensor]) -> Any:
    """A nested output with other tensors in the places of its own, in the order of :func:`tensors_in`.

    Dataclasses and mappings of any kind become plain dicts.
    """
    if isinstance(output, Tensor):
        return next(given)
    if isinstance(output, Mapping):
        return {key: with_tensors(value, given) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [with_tensors(value, given) for value in output]
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: with_tensors(getattr(output, field.name), given) for field in fields(output)}
    return output


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


def forward(model: nn.Module, batch: Any) -> Any:
    """:func:`run` the model on a batch, moved to where the model is."""
    return run(model, to(of_batch(batch), device_of(model)))
