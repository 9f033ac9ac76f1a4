"""Consumers' conditional mutual information, as one score per position of each channel group."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import find_estimator
from mint_compress.estimators.elimination import Regression, eliminate, information, regression
from mint_compress.graph.groups import ChannelGroup, unit_offsets
from mint_compress.progress import Progress
from mint_compress.scoring.calibration import Calibration
from mint_compress.scoring.layer_moments import LayerMoments

log = logging.getLogger(__name__)

NOISE = 10.0
"""Observation noise on every child, as a multiple of its variance.

With little noise information saturates: a child that has lost half is cheap to lose whole, and one
global threshold then empties some layers. With much, nats add up like shares of explained variance.
ResNet-20 without training: benchmarks/without_training.py.
"""
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """How much information each position of each prunable group carries.

    Attributes
    ----------
    nats
        Group name -> ``(width,)`` float64: conditional mutual information of that position's
        channels with the outputs of the layers that read them, given the other inputs, summed over
        readers; over a reader's outputs averaged with moments, summed with samples. With moments, the
        outputs are observed with noise that costs the network the same in each of them, so that those
        count that it depends on. With backward elimination it is the loss at the step at which the
        position went, made strictly increasing, so that sorting gives the order of removal back.
    estimator, images, seed
        Where the figures come from.
    """

    nats: Mapping[str, Tensor] = field(repr=False)
    estimator: str
    images: int
    seed: int


def uses_samples(estimator: str) -> bool:
    """Whether an estimator looks at sampled spatial means; ``gaussian`` looks at second moments."""
    return estimator != "gaussian"


def score(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    *,
    estimator: str = "gaussian",
    backward: bool = True,
    blocks: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> ChannelScores:
    """Score every position of every prunable group.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    calibration
        From :func:`calibrate` with the same groups.
    estimator
        ``gaussian`` (backward elimination on second moments of patches) or a name known to
        :func:`mint_compress.estimators.find_estimator`, which scores spatial means.
    backward
        Of ``gaussian``: eliminate step by step. False scores every position once, all others being
        given, for comparison: two copies of a channel then both look dispensable.
    blocks
        Number of contiguous, nearly equal blocks a group's positions are scored in; 0: one by one.
    seed
        For estimators that draw.

    Returns
    -------
    ChannelScores

    Raises
    ------
    MintError
        An unknown estimator, or a calibration without what the estimator needs.
    """
    prunable = [g for g in groups if g.prunable]
    if not uses_samples(estimator):
        nats = _by_elimination(prunable, calibration, backward, blocks, progress)
    else:
        nats = _by_samples(prunable, calibration, estimator, blocks, seed, progress)
    return ChannelScores(nats, estimator, calibration.images, seed)


def block_of(width: int, blocks: int) -> Tensor:
    """``(width,)`` block number of each position: contiguous, sizes differing by at most one."""
    count = width if blocks <= 0 else min(blocks, width)
    return (torch.arange(width) * count) // width


def _by_elimination(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    backward: bool,
    blocks: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    if missing := {m.layer for g in groups for m in g.consumers} - set(calibration.moments):
        raise MintError(
            f"The calibration holds no moments of layer {min(missing)}. "
            "Calibrate with the same groups and moments=True."
        )
    offsets = unit_offsets(groups)
    total = sum(g.width for g in groups)
    done = 0
    nats: dict[str, Tensor] = {}
    for component in _components(groups):
        owner = _renumbering(component, offsets, total, blocks)
        units = int(owner.max()) + 1
        problems = _problems(component, calibration, owner, units)
        if backward:
            order, losses = eliminate(problems, units, step=partial(_report, progress, done, total))
        else:
            everything = torch.arange(units, device=problems[0].weight.device)
            losses, order = information(problems, everything).sort(stable=True)
        value = torch.empty(units, dtype=torch.float64)
        value[order.cpu()] = losses.cpu()
        step = torch.empty(units, dtype=torch.long)
        step[order.cpu()] = torch.arange(units)
        for group in component:
            mine = owner[offsets[group.name] : offsets[group.name] + group.width]
            nats[group.name] = _strictly_increasing(value[mine], step[mine])
        done += sum(g.width for g in component)
    return {g.name: nats[g.name] for g in groups}


def _report(progress: Progress | None, done: int, total: int, removed: int) -> None:
    if progress:
        progress("score", min(done + removed, total), total)


def _problems(
    component: Sequence[ChannelGroup], calibration: Calibration, owner: Tensor, units: int
) -> list[Regression]:
    """One elimination problem per reader, or per group of a grouped convolution."""
    problems = []
    for layer in sorted({m.layer for g in component for m in g.consumers}):
        seen = calibration.moments[layer]
        owner_here = owner.to(seen.column_units.device)
        # the mean over a layer's children: a layer does not count for more because it is wider
        scale = 1.0 / (seen.weight.shape[0] * seen.weight.shape[2])
        importance = _importance(seen, calibration.sensitivity.get(layer))
        matrices = (seen.covariance, seen.weight, seen.column_units, importance)
        for covariance, weight, columns, counts in zip(*matrices, strict=True):
            if counts is not None and not bool(counts.any()):
                continue  # what a dead channel group reads is of no use
            column_units = torch.where(columns >= 0, owner_here[columns.clamp_min(0)], -1)
            problem = regression(
                covariance, weight, column_units, units, noise=NOISE, ridge=RIDGE, importance=counts
            )
            problems.append(replace(problem, scale=scale))
    return problems


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


def _pair_progress(
    progress: Progress | None, job: int, jobs: int, _stage: str, done: int, total: int
) -> None:
    """Each layer is an equal part of the whole bar, in thousandths."""
    if progress:
        progress("score", 1000 * job + 1000 * done // max(total, 1), 1000 * jobs)


def _by_samples(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    estimator: str,
    blocks: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    estimate = find_estimator(estimator)
    nats = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in groups}
    jobs = [(g, m) for g in groups for m in g.consumers]
    for done, (group, member) in enumerate(jobs):
        if member.layer not in calibration.samples:
            raise MintError(
                f"The calibration holds no samples of layer {member.layer}. "
                "Calibrate with the same groups and samples=True."
            )
        parents, children = calibration.samples[member.layer]
        block = block_of(group.width, blocks)
        count = int(block[-1]) + 1
        # channels of other groups are parents too: they condition, as one block at the end
        labels = torch.full((parents.shape[1],), count)
        labels[torch.from_numpy(member.channels)] = block[torch.from_numpy(member.positions)]
        child_labels = block_of(children.shape[1], blocks)
        tell = partial(_pair_progress, progress, done, len(jobs))
        pairs = estimate(
            children, parents, child_groups=child_labels, parent_groups=labels, seed=seed, progress=tell
        )
        nats[group.name] += pairs.sum(0).cpu().double()[:count][block]
    return nats
