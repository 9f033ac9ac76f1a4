"""Contexts in which a network is run: what they change is put back at their end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mint_compress.nn.devices import device_of
from mint_compress.nn.layers import NORMS, WEIGHTED


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


def forget_computed_(module: nn.Module) -> None:
    """Let its parts drop what they keep that was computed from their parameters; modes stay as they are.

    LeViT's attention and its kin keep the biases of all pairs of places until their mode is set.
    """
    modes = [(m, m.training) for m in module.modules()]
    module.train()
    module.eval()
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


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Move ``module`` to ``device``, and back to where it was when the block ends."""
    home = device_of(module)
    module.to(device)
    try:
        yield module
    finally:
        module.to(home)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed what draws from PyTorch's global generators (dropout, foreign loaders) and restore them after.

    Everything of our own draws from an explicit ``torch.Generator``; this is for code that cannot.
    """
    device = device or torch.device("cpu")
    cuda = []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def training_flags(model: nn.Module) -> Iterator[None]:
    """Let the network take the ways of training, while its layers compute as in evaluation.

    Only modules that hold others are switched: dropout and normalisation stay as they are.
    """
    parts = [m for m in model.modules() if any(m.children()) and not isinstance(m, (*NORMS, *WEIGHTED))]
    modes = [(m, m.training) for m in parts]
    for m in parts:
        m.training = True
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
