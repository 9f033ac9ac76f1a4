"""Activations on the way through two networks, compared at the channels that the smaller one has left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import our_own
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.counting import module_macs
from mint_compress.nn.io import Inputs
from mint_compress.nn.layers import WEIGHTED, channel_dim, in_channels, is_depthwise
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.tasks.distance import lacking

PLACES = 8
"""How many layers' inputs are compared, at equal distances in multiply-accumulate operations."""


@dataclass(frozen=True, eq=False)
class Place:
    """The input of one layer, which the smaller network has at ``kept`` channels of the original's."""

    layer: str
    dim: int
    kept: Tensor


def places_to_match(
    original: nn.Module, plan: PruningPlan, sample: Inputs, count: int | None = None
) -> list[Place]:
    """Layers whose inputs are to be alike in both networks.

    What a layer is given has passed shortcuts and activation functions: it is what the network goes on
    with. The last layer's input is always among them.

    Parameters
    ----------
    original
        The network before surgery; run once on ``sample``, in eval mode.
    plan
        What was removed.
    count
        How many; by default :data:`PLACES`.
    """
    with evaluating(original), torch.no_grad():
        macs = module_macs(original, sample).layers
    named = {
        name: layer
        for name, layer in original.named_modules()
        if name in macs and isinstance(layer, WEIGHTED) and not is_depthwise(layer)
    }
    gone = {cut.layer: cut.removed for cut in plan.cuts if cut.side == "in"}
    return [
        _place(name, named[name], gone.get(name, ())) for name in _spread(macs, list(named), count or PLACES)
    ]


def _spread(macs: Mapping[str, int], names: Sequence[str], count: int) -> list[str]:
    """The last layer, and those before which 1/count, 2/count, ... of the work is done."""
    total, done, chosen = sum(macs.values()), 0, list[str]()
    for name, own in macs.items():
        if name in names and done * count >= total * (len(chosen) + 1):
            chosen.append(name)
        done += own
    return list(dict.fromkeys([*chosen, *names[-1:]]))


def _place(name: str, layer: nn.Module, removed: Sequence[int]) -> Place:
    stays = torch.ones(in_channels(layer), dtype=torch.bool)
    stays[list(removed)] = False
    return Place(name, channel_dim(layer), stays.nonzero().flatten())


@contextmanager
def matched(
    model: nn.Module, original: nn.Module, places: Sequence[Place]
) -> Iterator[Callable[[], Tensor | None]]:
    """While the block lasts, both networks keep what their layers are given.

    Yields
    ------
    callable
        The mean over the places of the share of variance that the smaller network lacks since both last ran,
        with a gradient; None where nothing can be compared.
    """
    seen: dict[str, dict[str, list[Tensor]]] = {"model": {}, "original": {}}

    def keeping(side: str, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            with our_own():
                seen[side].setdefault(name, []).append(first_given(args, kwargs))

        return hook

    def apart() -> Tensor | None:
        terms: list[Tensor] = []
        for place in places:
            ours, theirs = (seen[side].pop(place.layer, []) for side in ("model", "original"))
            for pair in zip(ours, theirs, strict=False):
                if (term := _apart(place, *pair)) is not None:
                    terms.append(term)
        return torch.stack(terms).mean() if terms else None

    hooks = [
        network.get_submodule(place.layer).register_forward_pre_hook(
            keeping(side, place.layer), with_kwargs=True
        )
        for side, network in (("model", model), ("original", original))
        for place in places
    ]
    with hooked(hooks):
        yield apart


def _apart(place: Place, ours: Tensor, theirs: Tensor) -> Tensor | None:
    """None where the layer reads something else in the two networks, as one that selects its inputs does."""
    width = theirs.shape[place.dim]
    if ours.shape[place.dim] != width and int(place.kept[-1]) < width:
        theirs = theirs.index_select(place.dim, place.kept.to(theirs.device))
    return lacking(ours, theirs) if ours.shape == theirs.shape else None
