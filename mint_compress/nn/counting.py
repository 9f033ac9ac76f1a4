"""Parameters and multiply-accumulate operations of a module, counted from its own shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mint_compress.nn.io import Inputs, count, run

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) by every long stage; cli.py draws a bar from it."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)
"""Layers in which one channel is input and output at once."""


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


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution in which each output reads one input of its own."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels


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


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take the hooks away at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first thing that a layer was called with, by position or by name; None if there was nothing."""
    return args[0] if args else next(iter(kwargs.values()), None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put ``module`` into eval mode; afterwards every submodule is back in the mode it was in."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for m, training in modes:
            m.training = training


@contextmanager
def requiring_gradients(module: nn.Module) -> Iterator[None]:
    """Let every parameter want gradients, frozen ones too; afterwards the flags are as they were."""
    flags = [(p, p.requires_grad) for p in module.parameters() if p.is_floating_point()]
    for parameter, _ in flags:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


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
