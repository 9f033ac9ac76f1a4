"""Which layers run, in their order, and how many weights each had before and after."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import CheckFailed
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.counting import parameters
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, run, tensors_in, to
from mint_compress.nn.layers import WEIGHTED
from mint_compress.reporting.records import LayerChange

REST = "biases and normalisation"


def layer_counts(original: nn.Module, pruned: nn.Module, example_inputs: Inputs) -> tuple[LayerChange, ...]:
    """Weights of every convolution and linear layer before and after, in the order of their first calls.

    A pair is the layer called before and the layer itself; of layers that read the same tensor, as parallel
    heads do, the layer called before the first of them. A layer that is never called stands alone, at the
    end. A shared weight counts where it comes first. The last row is everything else.
    """
    before, after = _weights(original), _weights(pruned)
    if unmatched := sorted(before.keys() ^ after.keys()):
        raise CheckFailed(f"Layer '{unmatched[0]}' is in only one of the original and the pruned network.")
    sources = _sources(original, example_inputs, before.keys())
    called = list(sources)
    pairs = [f"{source} - {name}" for name, source in sources.items()]
    alone = [name for name in before if name not in called]
    rows = [
        LayerChange(pair, before[name], after[name])
        for pair, name in zip(pairs + alone, called + alone, strict=True)
    ]
    rest = (parameters(original) - sum(before.values()), parameters(pruned) - sum(after.values()))
    return (*rows, LayerChange(REST, *rest))


def calls(model: nn.Module, example_inputs: Inputs) -> list[str]:
    """Qualified names of all modules in the order of their first calls."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in model.named_modules()
    ]
    with hooked(handles), evaluating(model), torch.no_grad():
        run(model, to(example_inputs, device_of(model)))
    return list(order)


def _sources(model: nn.Module, example_inputs: Inputs, layers: Collection[str]) -> dict[str, str]:
    """Layer -> what comes before it, in the order of the first calls."""
    inputs = to(example_inputs, device_of(model))
    read = {_place(tensor): "input" for tensor in tensors_in(inputs)}
    kept: list[Any] = []  # so that no other tensor is made at the same place
    sources: dict[str, str] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_given(args, kwargs)
        if name not in sources and isinstance(given, Tensor):
            before = next(reversed(sources), "input")
            kept.append(given)
            sources[name] = read.setdefault(_place(given), before)

    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
        )
        for name, module in model.named_modules()
        if name in layers
    ]
    with hooked(handles), evaluating(model), torch.no_grad():
        run(model, inputs)
    return sources


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a tensor from all others that are there."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _weights(model: nn.Module) -> dict[str, int]:
    """Elements of every weighted layer's own weight; a shared one counts where it comes first."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, WEIGHTED):
            # a reparametrised weight is no parameter of the layer: it belongs to the last row
            weight = layer._parameters.get("weight")
            counts[name] = 0 if weight is None or id(weight) in seen else weight.numel()
            seen.add(id(weight))
    return counts
