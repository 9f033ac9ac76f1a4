"""The receipt from an export: the trace that became it, and the tensors in the shipped file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.exporting.receipt_tensors import Shape, named_parameters


def check_export(
    pruned: nn.Module,
    traced: Mapping[str, Shape],
    shipped: Mapping[str, Shape],
    never_run: tuple[str, ...] = (),
) -> int:
    """Compare the tensors of an export with the network; return the parameters in its trace.

    Parameters
    ----------
    pruned
        The network.
    traced
        Name -> shape in the trace, before anything was folded: every parameter, by name and shape.
    shipped
        Name -> shape of two and more dimensions in the shipped file: every such parameter, by name
        and shape, transposition allowed. An optimiser that folds something into a weight may drop
        its name, and it keeps one of several small equal tensors; then the shape must be there.
    never_run
        Modules whose parameters neither has to hold, and single parameters.
    """
    missing: list[tuple[nn.Parameter, str]] = []
    kept: list[nn.Parameter] = []
    total = 0
    for parameter, names in named_parameters(pruned):
        shape = tuple(parameter.shape)
        if not parameter.numel():  # exporters drop what is empty
            continue
        idle = _is_of(names, never_run)
        if name := next((name for name in names if name in traced), None):
            _compare(name, traced[name], (shape,))
            total += math.prod(traced[name])
        elif not idle:
            raise CheckFailed(f"The export has no tensor '{names[0]}'.")
        if len(shape) < 2:
            continue
        if name := next((name for name in names if name in shipped), None):
            _compare(name, shipped[name], _transpositions(shape))
            kept.append(parameter)
        elif not idle:
            missing.append((parameter, names[0]))
    anonymous = _anonymous(pruned, shipped)
    for parameter, name in missing:
        if any(other.shape == parameter.shape and torch.equal(other, parameter) for other in kept):
            continue
        match = next((s for s in anonymous if s in _transpositions(tuple(parameter.shape))), None)
        if match is None:
            raise CheckFailed(f"The shipped file has no tensor '{name}' of shape {tuple(parameter.shape)}.")
        anonymous.remove(match)
        kept.append(parameter)
    return total


def missing_from(pruned: nn.Module, traced: Mapping[str, Shape], never_run: tuple[str, ...]) -> bool:
    """Whether a trace lacks a parameter of what runs."""
    held = ((p, names) for p, names in named_parameters(pruned) if p.numel() and not _is_of(names, never_run))
    return any(traced.keys().isdisjoint(names) for _, names in held)


def _is_of(names: tuple[str, ...], modules: tuple[str, ...]) -> bool:
    """Whether a parameter, with all its names, is one of these or of these modules."""
    return all(name in modules or name.rpartition(".")[0] in modules for name in names)


def _anonymous(model: nn.Module, shipped: Mapping[str, Shape]) -> list[Shape]:
    """Shapes of the shipped tensors that are not called after a parameter."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [shape for name, shape in shipped.items() if name not in named]


def _transpositions(shape: Shape) -> tuple[Shape, ...]:
    return (shape, shape[::-1]) if len(shape) == 2 else (shape,)


def _compare(name: str, found: Shape, allowed: tuple[Shape, ...]) -> None:
    if found not in allowed:
        raise CheckFailed(f"Tensor '{name}' of the export is {found}, in the network {allowed[0]}.")
