"""Which layers run, in their order, and how many weights each had before and after."""

from __future__ import annotations

import torch
from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.nn.contexts import evaluating, hooked
from mint_compress.nn.counting import parameters
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, run, to
from mint_compress.nn.layers import WEIGHTED
from mint_compress.reporting.records import LayerChange

REST = "biases and normalisation"


def layer_counts(original: nn.Module, pruned: nn.Module, example_inputs: Inputs) -> tuple[LayerChange, ...]:
    """Weights of every convolution and linear layer before and after, in the order of their first calls.

    A pair is the layer called before and the layer itself; a layer that is never called stands alone,
    at the end. A shared weight counts where it comes first. The last row is everything else.
    """
    before, after = _weights(original), _weights(pruned)
    if unmatched := sorted(before.keys() ^ after.keys()):
        raise CheckFailed(f"Layer '{unmatched[0]}' is in only one of the original and the pruned network.")
    called = [name for name in calls(original, example_inputs) if name in before]
    pairs = [f"{source} - {name}" for source, name in zip(["input", *called], called, strict=False)]
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
