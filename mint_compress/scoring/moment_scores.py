"""Scores from second moments: what the readers of some channel groups lose as positions go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.elimination import eliminate
from mint_compress.estimators.regression import Regression, information, regression
from mint_compress.graph.groups import ChannelGroup, unit_offsets
from mint_compress.progress import Progress
from mint_compress.scoring.blocks import block_of
from mint_compress.scoring.calibration import Calibration
from mint_compress.scoring.layer_moments import LayerMoments


def moment_scores(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    backward: bool,
    blocks: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Nats per position of each of the prunable ``groups``; parameters as of ``score``."""
    if missing := {m.layer for g in groups for m in g.consumers} - set(calibration.moments):
        raise MintError(
            f"The calibration holds no moments of layer {min(missing)}. "
            "Calibrate with the same groups and moments=True."
        )
    offsets = unit_offsets(groups)
    total = sum(g.width for g in groups)
    done = 0

    def tell(removed: int) -> None:
        if progress:
            progress("score", min(done + removed, total), total)

    nats: dict[str, Tensor] = {}
    for component in _components(groups):
        owner = _renumbering(component, offsets, total, blocks)
        units = int(owner.max()) + 1
        problems = _problems(component, calibration, owner, units)
        order, losses = eliminate(problems, units, step=tell) if backward else _one_by_one(problems, units)
        value = _scattered(order, losses)
        step = _scattered(order, torch.arange(units))
        for group in component:
            mine = owner[offsets[group.name] : offsets[group.name] + group.width]
            nats[group.name] = _strictly_increasing(value[mine], step[mine])
        done += sum(g.width for g in component)
    return {g.name: nats[g.name] for g in groups}


def _one_by_one(problems: Sequence[Regression], units: int) -> tuple[Tensor, Tensor]:
    """The order of the units, least informative first, and the nats of each, all others being given."""
    everything = torch.arange(units, device=problems[0].weight.device)
    losses, order = information(problems, everything).sort(stable=True)
    return order, losses


def _scattered(order: Tensor, values: Tensor) -> Tensor:
    """Values in the order of the units, on the CPU, from values in the order of removal."""
    out = torch.empty(len(order), dtype=values.dtype)
    out[order.cpu()] = values.cpu()
    return out


def _problems(
    component: Sequence[ChannelGroup], calibration: Calibration, owner: Tensor, units: int
) -> list[Regression]:
    """One problem per reader, or per group of a grouped convolution."""
    layers = sorted({m.layer for g in component for m in g.consumers})
    return [p for layer in layers for p in _of_layer(layer, calibration, owner, units)]


def _of_layer(layer: str, calibration: Calibration, owner: Tensor, units: int) -> Iterator[Regression]:
    seen = calibration.moments[layer]
    owner = owner.to(seen.column_units.device)
    # the mean over a layer's children: a layer does not count for more because it is wider
    scale = 1.0 / (seen.weight.shape[0] * seen.weight.shape[2])
    importance = _importance(seen, calibration.sensitivity.get(layer))
    matrices = (seen.covariance, seen.weight, seen.column_units, importance)
    for covariance, weight, columns, counts in zip(*matrices, strict=True):
        if counts is not None and not bool(counts.any()):
            continue  # what a dead channel group reads is of no use
        column_units = torch.where(columns >= 0, owner[columns.clamp_min(0)], -1)
        yield regression(covariance, weight, column_units, units, importance=counts, scale=scale)


def _importance(seen: LayerMoments, sensitivity: Tensor | None) -> Sequence[Tensor | None]:
    """For every channel group of a layer, what each of its children counts for; None: all the same.

    Known where children are output channels, and at all only where the network's outputs depend on them.
    """
    if sensitivity is None or seen.form != "patches" or not bool(sensitivity.any()):
        return [None] * len(seen.weight)
    return list(sensitivity.to(seen.weight).reshape(len(seen.weight), -1))


def _components(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """Groups that share a reader compete for it, so they are eliminated together."""
    components: list[tuple[set[str], list[ChannelGroup]]] = []
    for group in groups:
        layers, members = {m.layer for m in group.consumers}, [group]
        apart = []
        for other_layers, others in components:
            if other_layers & layers:
                layers, members = layers | other_layers, others + members
            else:
                apart.append((other_layers, others))
        components = [*apart, (layers, members)]
    return [members for _, members in components]


def _renumbering(
    component: Sequence[ChannelGroup], offsets: Mapping[str, int], total: int, blocks: int
) -> Tensor:
    """``(total,)`` unit of the whole network -> block number within the component, else -1."""
    owner = torch.full((total,), -1)
    first = 0
    for group in component:
        own = block_of(group.width, blocks) + first
        owner[offsets[group.name] : offsets[group.name] + group.width] = own
        first = int(own[-1]) + 1
    return owner


def _strictly_increasing(value: Tensor, step: Tensor) -> Tensor:
    """Running maximum in the order of removal, nudged so that no two steps tie."""
    out = torch.empty_like(value)
    highest = torch.tensor(0.0, dtype=torch.float64)
    infinity = torch.tensor(float("inf"), dtype=torch.float64)
    for at in step.unique(sorted=True):
        here = step == at  # the positions of one block share their step
        highest = torch.maximum(value[here][0], torch.nextafter(highest, infinity))
        out[here] = highest
    return out
