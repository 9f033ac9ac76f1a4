"""Parameters and multiply-accumulate operations of a module, counted from its own shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.io import Inputs, count, run
from mint_compress.nn.layers import WEIGHTED


def parameters(module: nn.Module) -> int:
    """Number of elements of all parameters, a shared parameter counted once."""
    return sum(p.numel() for p in module.parameters())


def first_owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
    """Every submodule with its name and its own parameters; a shared one is the first one's alone."""
    owned: set[int] = set()
    for name, part in module.named_modules():
        own: dict[str, nn.Parameter] = {}
        for leaf, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in owned:
                owned.add(id(parameter))
                own[leaf] = parameter
        yield name, part, own


def shared_parameters(module: nn.Module) -> dict[str, str]:
    """Name of every submodule that holds a parameter in common with another -> that other one's name."""
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {
        name: other
        for names in owners.values()
        for name, other in zip(names, names[1:] + names[:1], strict=True)
        if name != other
    }


def layer_macs(module: nn.Module, example_inputs: Inputs | tuple[Any, ...]) -> dict[str, int]:
    """Multiply-accumulate operations of one sample, per convolution and linear layer.

    Parameters
    ----------
    module
        Any network; it is run once, in eval mode, without gradients.
    example_inputs
        A tensor, positional inputs, or a dict of named ones, with a batch dimension first; counts are
        divided by that batch size.

    Returns
    -------
    dict
        Qualified layer name -> MACs. Bias, normalisation and activation are not counted, as in
        most published tables. A layer that is called twice counts twice.
    """
    counts: dict[str, int] = {}
    handles = []
    batch = count(example_inputs)

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            transposed = bool(getattr(layer, "transposed", False))
            # every output element is a dot product as long as one filter; a transposed
            # convolution spreads every input element over one filter
            elements, filters = (
                (first_given(args, kwargs).numel(), weight.shape[0])
                if transposed
                else (output.numel(), weight.shape[0])
            )
            counts[name] = counts.get(name, 0) + elements * (weight.numel() // filters) // batch

        return record

    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED):
            handles.append(layer.register_forward_hook(hook(name), with_kwargs=True))
    with hooked(handles), evaluating(module), torch.no_grad():
        run(module, example_inputs)
    return counts
