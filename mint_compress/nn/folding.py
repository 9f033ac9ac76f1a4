"""Weights that are computed from others before each forward pass: weight and spectral norm, pruning masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class Computed(NamedTuple):
    """What computes a weight: how it is called, what of PyTorch's ends it, and a call that does."""

    kind: str
    remedy: str
    remove: Callable[[], Any]


def fold_computed_weights_(model: nn.Module) -> tuple[str, ...]:
    """Make them weights like others, with the values that they have in eval mode.

    Returns
    -------
    tuple of str
        A line for each kind of what was folded in.
    """
    model.eval()
    found = [computed for module in model.modules() for computed in computed_weights(module)]
    for computed in found:
        computed.remove()
    return tuple(
        f"{kind} folded into the weights of {count} {'layer' if count == 1 else 'layers'}"
        for kind, count in Counter(computed.kind for computed in found).items()
    )


def computed_weights(module: nn.Module) -> Iterator[Computed]:
    """What computes weights of this module itself."""
    if parametrize.is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
            kind = ", ".join(type(step).__name__ for step in steps)
            # the two that PyTorch makes are known by the functions that make them
            kind = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm"}.get(kind, kind)
            yield Computed(kind, "remove_parametrizations", partial(_remove_parametrizations, module, name))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            remove = partial(remove_weight_norm, module, hook.name)
            yield Computed("weight_norm", "remove_weight_norm", remove)
        elif isinstance(hook, SpectralNorm):
            remove = partial(remove_spectral_norm, module, hook.name)
            yield Computed("spectral_norm", "remove_spectral_norm", remove)
        elif isinstance(hook, prune.BasePruningMethod):
            yield Computed("pruning masks", "prune.remove", partial(prune.remove, module, hook._tensor_name))


def _remove_parametrizations(module: nn.Module, name: str) -> None:
    # PyTorch makes a class for the module, which copies share, and takes the weight off that class
    shared = type(module)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)
    parametrize.remove_parametrizations(module, name)
