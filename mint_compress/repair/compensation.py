"""Closed-form repair: the surviving weights are refitted so that each layer gives what it gave before.

Layer after layer, in forward order, ridge least squares maps the *pruned* network's own inputs to
the *original* network's outputs (He et al., "Channel Pruning", ICCV 2017, eq. 4, made sequential).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mint_compress.allocator import trim_memory
from mint_compress.nn.batch_size import kept_alive, kept_alive_at, samples_at_once
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import concatenate, count, of_batch, select, split, to
from mint_compress.nn.memory_format import fastest_layout
from mint_compress.progress import Progress
from mint_compress.repair.adjacency import trace
from mint_compress.repair.interleaving import can_interleave
from mint_compress.repair.layer_fit import Repair, refit_
from mint_compress.repair.layers_to_repair import LayerToRepair, layers_to_repair
from mint_compress.repair.network_pair import BATCH_SIZE, TRIMMED, NetworkPair, advance_to
from mint_compress.repair.targets import same_positions
from mint_compress.surgery.pruning_plan import PruningPlan

__all__ = ["Repair", "compensate_"]


def compensate_(
    model: nn.Module,
    original: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    *,
    everywhere: bool = True,
    drift: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Repair]:
    """Refit the weights of the pruned ``model``, in place, so that it imitates ``original``.

    No parameter is added: an intercept goes into an existing bias or the BatchNorm that follows. A layer
    that is called several times is fitted to all of its calls at once.

    Parameters
    ----------
    model
        The network after :func:`mint_compress.surgery.pruning.prune_`.
    original
        The network before; it is not changed.
    plan
        What was removed.
    batches
        Calibration inputs as for :func:`calibrate`; labels are not looked at.
    everywhere
        Refit every layer from the first pruned one on, not just those that lost inputs: the others
        then undo some of the drift that reaches them.
    drift
        Where a shortcut is added to a layer's output, let the layer also make up for what the
        shortcut has lost on its way.
    seed
        Draws the pixels used.
    progress
        Called after each layer.

    Returns
    -------
    list of Repair
        In forward order.

    Raises
    ------
    MintError
        The forward pass does not call its layers in the same order for all batches.
    """
    trim_memory()
    inputs = concatenate([of_batch(batch) for batch in batches])
    interleaved = can_interleave(original, inputs)
    topology = trace(model, (select(inputs, slice(1)), None))
    layers = layers_to_repair(model, original, plan, topology, everywhere=everywhere, drift=drift)
    if not interleaved:  # the passes that see the later calls of a layer would go through it meanwhile
        layers = {name: layer for name, layer in layers.items() if layer.calls == 1}
    calls = [name for name in topology.calls if name in layers]
    sample = to(select(inputs, slice(1)), device_of(original))
    if interleaved:
        at_once = samples_at_once(original, sample, BATCH_SIZE)
        alive = [max(1, most // at_once) for most in kept_alive_at(original, sample, calls)]
    else:  # passes that would meet in what the network keeps on itself go as one
        inputs, alive = select(inputs, slice(kept_alive(original, sample))), [1] * len(calls)
        at_once = count(inputs)
    networks = NetworkPair(model, original, split(inputs, at_once))
    with fastest_layout([original, model], inputs):
        return _repair_in_order_(networks, layers, list(zip(calls, alive, strict=True)), seed, progress)


def _repair_in_order_(
    networks: NetworkPair,
    layers: Mapping[str, LayerToRepair],
    calls: Sequence[tuple[str, int]],
    seed: int,
    progress: Progress | None,
) -> list[Repair]:
    """Go through the network call by call, and refit each layer at its first.

    A call is a layer's name and how many batches may have come there: the others begin later.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [count(of_batch(batch)) for batch in networks.batches]
    shortcuts = {name: layer.shortcut for name, layer in layers.items() if layer.shortcut is not None}
    repairs: list[Repair] = []
    visited = set[str]()
    with (
        evaluating(networks.pruned),
        evaluating(networks.original),
        networks.passes(layers, shortcuts) as pairs,
    ):
        for pauses, (name, alive) in enumerate(calls, start=1):
            begun = pairs[:alive]
            advance_to(name, begun, pauses)
            if name in visited:
                continue  # a later call, which has the refitted weights
            visited.add(name)
            if len(visited) % TRIMMED == 0:
                trim_memory()
            if same_positions(layers[name].module, pairs[0]):
                found = refit_(layers[name], begun, networks, generator)
                repairs.append(replace(found, images=sum(sizes[:alive])))
            if progress:
                progress("repair", len(visited), len(layers))
    return repairs
