"""Parameters and multiply-accumulate operations of a module, counted from its own shapes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from mint_compress.errors import ForeignError, our_own
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.io import Inputs, count, run
from mint_compress.nn.layers import WEIGHTED, is_transposed
from mint_compress.nn.matrix_products import MatrixProduct, Place, watching_products
from mint_compress.nn.recurrent import RECURRENT, macs_of_call

log = logging.getLogger(__name__)
Seen = TypeVar("Seen")


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


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulate operations of one sample, each counted once.

    Bias, normalisation, activation and other element-wise work are not counted, as in most published tables.

    Attributes
    ----------
    layers
        Convolution, linear or recurrent layer -> its MACs. One that is called twice counts twice.
    uncalled
        The same where a network computes with the weight of a layer that it does not call, as
        ``nn.MultiheadAttention`` does with its output projection.
    products
        Module -> MACs of what else is multiplied in it: activations with activations (attention),
        or with parameters that belong to no layer.
    """

    layers: Mapping[str, int]
    uncalled: Mapping[str, int]
    products: Mapping[str, int]

    @property
    def total(self) -> int:
        """MACs of the whole network."""
        return sum(sum(part.values()) for part in (self.layers, self.uncalled, self.products))


def module_macs(module: nn.Module, example_inputs: Inputs | tuple[Any, ...]) -> Macs:
    """Multiply-accumulate operations of one sample, counted while the network runs.

    Parameters
    ----------
    module
        Any network; it is run once, in eval mode, without gradients.
    example_inputs
        A tensor, positional inputs, or a dict of named ones, with a batch dimension first; counts are
        divided by that batch size.

    Returns
    -------
    Macs
        Half of what ``torch.utils.flop_counter.FlopCounterMode`` counts, by where it is done.
    """
    batch = count(example_inputs)
    inside: Counter[str] = Counter()
    uncalled: Counter[str] = Counter()
    products: Counter[str] = Counter()

    def seen(product: MatrixProduct) -> None:
        if product.place is Place.LAYER:
            inside[product.name] += sum(product.macs)
        else:
            counts = uncalled if product.place is Place.WEIGHT else products
            counts[product.name] += product.of_sample(batch)

    try:
        with watching_products(module, seen):
            calls = _calls(module, example_inputs)
    except ForeignError as error:  # a forward pass may not bear a dispatch mode around it
        log.warning("MACs beside the layers are not counted: watched, %s", str(error).removeprefix("The "))
        return Macs(layer_macs(module, example_inputs), {}, {})
    whole = {name: sum(each) for name, each in calls.items()}
    products.update({n: (macs - whole[n]) // batch for n, macs in inside.items() if macs > whole[n]})
    return Macs(_of_sample(calls, batch), dict(uncalled), dict(products))


def layer_macs(module: nn.Module, example_inputs: Inputs | tuple[Any, ...]) -> Mapping[str, int]:
    """The part of :func:`module_macs` that is done in layers that are called: name -> MACs."""
    return _of_sample(_calls(module, example_inputs), count(example_inputs))


def _of_sample(calls: Mapping[str, list[int]], batch: int) -> dict[str, int]:
    return {name: sum(macs // batch for macs in each) for name, each in calls.items()}


def _calls(module: nn.Module, example_inputs: Inputs | tuple[Any, ...]) -> dict[str, list[int]]:
    """The MACs of a batch in every call of each convolution, linear and recurrent layer."""
    return each_call(module, example_inputs, _of_call, (*WEIGHTED, *RECURRENT))


def each_call(
    module: nn.Module,
    example_inputs: Inputs | tuple[Any, ...],
    see: Callable[[nn.Module, torch.Tensor, Any], Seen],
    kinds: tuple[type[nn.Module], ...] = WEIGHTED,
) -> dict[str, list[Seen]]:
    """Run a network once; what ``see`` gives for every call of each layer of these kinds, by name.

    ``see`` is given the layer, what it was called with, and what it returned.
    """
    calls: dict[str, list[Seen]] = {}

    def hook(name: str) -> Callable[..., None]:
        @our_own()
        def record(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault(name, []).append(see(layer, first_given(args, kwargs), output))

        return record

    handles = [
        layer.register_forward_hook(hook(name), with_kwargs=True)
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
    ]
    with hooked(handles), evaluating(module), torch.no_grad():
        run(module, example_inputs)
    return calls


def _of_call(layer: nn.Module, given: Any, output: Any) -> int:
    if isinstance(layer, RECURRENT):
        return macs_of_call(layer, given if isinstance(given, torch.Tensor) else given.data)
    return _by_shape(layer, given, output)


def _by_shape(layer: nn.Module, given: torch.Tensor, output: torch.Tensor) -> int:
    """What a layer does in one call: every output is a dot product as long as one filter.

    A transposed convolution spreads every input over one filter.
    """
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    elements = given if is_transposed(layer) else output
    return elements.numel() * (weight.numel() // weight.shape[0])
