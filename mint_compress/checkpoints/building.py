"""Architectures made by their builders, which are others' code: real, or as an outline of their tensors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from mint_compress import zoo
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.random_init import WithoutRandomInit
from mint_compress.checkpoints.registry import TIERS
from mint_compress.errors import ForeignError, MintError, first_line
from mint_compress.importing import searching_here
from mint_compress.nn.contexts import seeded

# torchvision's builders of these fill the weights with scipy, for half a minute
SLOW_INIT = ("googlenet", "inception_v3")


@contextmanager
def calling(said: str) -> Iterator[None]:
    """Only a builder, or the module that it lies in, runs in this block: what it raises is its own fault.

    Parameters
    ----------
    said
        What went wrong then, as the start of a sentence: ``timm:resnet18 cannot be built``.
    """
    try:
        yield
    except MintError:
        raise
    except SystemExit as error:
        raise ForeignError(f"{said}: it calls sys.exit({error.code!r}).") from error
    except Exception as error:  # whatever somebody else's code raises
        raise ForeignError(f"{said}: {first_line(error)}") from error


def build(builder: Builder) -> nn.Module:
    """Make the architecture on the CPU; known ones without random initial weights.

    Raises
    ------
    MintError
        It cannot be imported, or fails when it is called.
    """
    if builder.name.partition(":")[0] not in TIERS:
        return called(_found(builder.name), builder)
    make = _known(builder)
    with seeded(0), WithoutRandomInit(), _constructing(builder):
        return make()


def called(make: Callable[..., nn.Module], builder: Builder) -> nn.Module:
    """What a callable of the user's makes; ``builder`` says its name and arguments.

    Raises
    ------
    MintError
        It fails, or returns something else than a module.
    """
    with torch.random.fork_rng(devices=[]):
        given = builder.kwargs or "no arguments"
        with calling(f"{builder.name} failed when it was called with {given}"):
            made = make(**builder.kwargs)
    if not isinstance(made, nn.Module):
        raise MintError(f"{builder.name} returned a {type(made).__name__}, not a torch.nn.Module.")
    return made


def outline(name: str, kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a known architecture's state_dict; no memory is used for its tensors."""
    builder = Builder(name, kwargs)
    make = _known(builder)
    with seeded(0), _constructing(builder):
        try:
            # also because random numbers on the meta device load a compiler, for seconds
            with torch.device("meta"), WithoutRandomInit():
                module = make()
        except RuntimeError:
            # torchvision's regnets compute with small tensors while they are built
            module = None
    return shapes_of(build(builder) if module is None else module)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a module's state_dict."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def accepts_classes(name: str) -> bool:
    """Whether a callable, or a known builder, takes ``num_classes``."""
    if name.partition(":")[0] in TIERS:
        return True
    make = _found(name)
    try:
        return "num_classes" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # the standard library, of a callable that has none
        return False


@contextmanager
def _constructing(builder: Builder) -> Iterator[None]:
    """A known builder is called in this block. Of our own zoo only PyTorch's allocator is watched."""
    said = f"{builder.name} cannot be built with {builder.kwargs or 'its defaults'}"
    try:
        with nullcontext() if builder.name.startswith("zoo:") else calling(said):
            yield
    except (RuntimeError, MemoryError) as error:
        raise MintError(f"{said}: {first_line(error)}") from None


def _known(builder: Builder) -> Callable[[], nn.Module]:
    """The known builder with its arguments, ready to be called; nothing is built yet."""
    tier, _, leaf = builder.name.partition(":")
    kwargs = dict(builder.kwargs)
    if tier == "zoo":
        make = zoo.BUILDERS[leaf]
        taken = inspect.signature(make).parameters
        if unknown := [key for key in kwargs if key not in taken]:
            raise MintError(f"{builder.name} cannot be built with {kwargs}: it takes no {unknown[0]}")
        return partial(make, **kwargs)
    if tier == "timm":
        import timm

        return partial(timm.create_model, leaf, pretrained=False, **kwargs)
    from torchvision import models

    builds = models.get_model_builder(leaf)
    if "weights_backbone" in inspect.signature(builds).parameters:
        # by default torchvision downloads one
        kwargs["weights_backbone"] = None
    if leaf in SLOW_INIT:
        kwargs["init_weights"] = False
    return partial(builds, weights=None, **kwargs)


def _found(spec: str) -> Callable[..., Any]:
    module, _, path = spec.partition(":")
    with searching_here(), calling(f"{spec} cannot be imported"):
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise MintError(f"{spec} is a {type(found).__name__}, not a function or class that makes a network.")
    return found  # type: ignore[no-any-return]
