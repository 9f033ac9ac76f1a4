"""Scores and a budget make a plan: which positions stay, and what each layer will then count.

Nothing here touches a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mint_compress.errors import MintError
from mint_compress.graph.costs import LayerShape, Network
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.input_groups import MANY, MOST_FEATURES
from mint_compress.scoring.scores import ChannelScores, block_of
from mint_compress.settings import Budget
from mint_compress.surgery.pruning_plan import GroupCut, LayerCut, PruningPlan

MACS_WEIGHT = {"params": 0.0, "both": 0.5, "macs": 1.0}
"""Cost -> weight of a position's share of the MACs in its price, beside that of the parameters."""
HALVINGS = 16
Mask = NDArray[np.bool_]
Goals = tuple[int, int]
"""How many parameters and MACs have to go at least."""


def plan(groups: Sequence[ChannelGroup], scores: ChannelScores, budget: Budget) -> PruningPlan:
    """Choose the positions that go: those below one global threshold on nats per cost.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    scores
        One score per position of every prunable group.
    budget
        The shares to remove, and the bounds to keep.

    Returns
    -------
    PruningPlan
        The plan that removes fewest positions while at least the shares asked go.

    Raises
    ------
    MintError
        When a share cannot be reached: the message says the most that can go, and which groups
        stand in the way.
    """
    if budget.ratio is None and budget.macs_ratio is None:
        raise MintError("A budget is a share of the parameters, of the MACs, or both. Give one.")
    candidates = [_Candidate.of(g, scores, budget) for g in groups if g.prunable]
    if not candidates:
        reasons = sorted({g.reason or "" for g in groups})
        raise MintError(f"No channel of this network can be removed: {'; '.join(reasons)[:300]}.")
    network = groups[0].network
    if budget.macs_ratio is not None and not network.macs:
        raise MintError("This network has no convolution or linear layer to count MACs of. Give --ratio.")
    goals = _goal(budget.ratio, network.parameters), _goal(budget.macs_ratio, network.macs)
    search = _Search(network, candidates)
    most = search.gone(search.masks_of(search.order(0.0)))
    if budget.ratio is not None and most[0] < goals[0]:
        share = most[0] / network.parameters
        raise MintError(_unreachable(budget.ratio, "parameters", share, budget, groups, candidates))
    if budget.macs_ratio is not None and most[1] < goals[1]:
        raise MintError(
            _unreachable(budget.macs_ratio, "MACs", most[1] / network.macs, budget, groups, candidates)
        )
    masks = search.masks(goals, MACS_WEIGHT[budget.cost])
    return make_plan(
        groups,
        {c.group.name: m for c, m in zip(candidates, masks, strict=True)},
        asked=budget.ratio,
        asked_macs=budget.macs_ratio,
    )


def _goal(share: float | None, whole: int) -> int:
    return 0 if share is None else math.ceil(share * whole - 1e-9)


def most_removed(groups: Sequence[ChannelGroup], budget: Budget = Budget()) -> PruningPlan | None:
    """The plan that removes all that may go; None where no group is prunable.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    budget
        Its bounds count, its shares do not.
    """
    prunable = [g for g in groups if g.prunable]
    # which positions go makes no difference to how many can
    scores = ChannelScores({g.name: torch.zeros(g.width) for g in prunable}, "none", images=0, seed=0)
    candidates = [_Candidate.of(g, scores, budget) for g in prunable]
    masks = {c.group.name: c.mask(len(c.steps)) for c in candidates}
    return make_plan(groups, masks, asked=None) if masks else None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One prunable group's removal steps: in which order its blocks go, and what a position is worth."""

    group: ChannelGroup
    steps: tuple[NDArray[np.int64], ...]
    values: tuple[float, ...]
    shares: tuple[float, float]
    quantum: int

    @staticmethod
    def of(group: ChannelGroup, scores: ChannelScores, budget: Budget) -> _Candidate:
        values = scores.nats[group.name].cpu().numpy()
        if values.shape != (group.width,) or not np.isfinite(values).all():
            raise MintError(
                f"Group {group.name} has {group.width} positions, but its scores have shape "
                f"{values.shape} or are not finite."
            )
        blocks = block_of(group.width, budget.blocks).numpy()
        first = np.unique(blocks, return_index=True)[1]
        ranked = np.argsort(values[first], kind="stable")
        steps = [np.flatnonzero(blocks == b) for b in ranked]
        quantum = 1 if budget.blocks else _quantum(group, budget.round_to)
        least = group.width - math.floor(budget.upper_limit * group.width + 1e-9)
        least = max(1, _round_up(least, quantum, group.width))
        kept, allowed, worth = group.width, [], []
        staying = _staying(group, values)
        for step, value in zip(steps, values[first][ranked], strict=True):
            if staying.intersection(step.tolist()):
                continue
            kept -= len(step)
            if kept < least:
                break
            allowed.append(step)
            worth.append(float(value) / len(step))
        # prices are equal within a group, so the order of removal must not be undone by block sizes
        worth = np.maximum.accumulate(worth).tolist()
        return _Candidate(group, tuple(allowed), tuple(worth), _shares(group), quantum)

    def densities(self, macs_weight: float) -> list[float]:
        """Nats per cost of each step's positions."""
        parameters, macs = self.shares
        price = max((1 - macs_weight) * parameters + macs_weight * macs, 1e-12)
        return [value / price for value in self.values]

    def mask(self, taken: int) -> Mask:
        """Positions that go when the first ``taken`` steps do, after rounding the width kept up."""
        gone = np.zeros(self.group.width, dtype=np.bool_)
        sizes = sum(len(s) for s in self.steps[:taken])
        keep = _round_up(self.group.width - sizes, self.quantum, self.group.width)
        if sizes == self.group.width - keep:
            for step in self.steps[:taken]:
                gone[step] = True
        else:
            gone[np.concatenate(self.steps[:taken])[: self.group.width - keep]] = True
        return gone


def _staying(group: ChannelGroup, values: NDArray[np.float64]) -> set[int]:
    """The best positions, one in each of the group's members: no layer may lose all channels of a side."""
    staying: set[int] = set()
    for positions in sorted(({*m.positions.tolist()} for m in group.members), key=len):
        if positions and not positions & staying:
            staying.add(max(positions, key=lambda p: (values[p], p)))
    return staying


def _round_up(width: int, quantum: int, most: int) -> int:
    return min(most, -(-width // quantum) * quantum)


def _quantum(group: ChannelGroup, round_to: int) -> int:
    """Step of positions so that layer widths kept are multiples of ``round_to`` where they are wider."""
    widest = max((len(m.channels) for m in group.members if m.side == "out"), default=group.width)
    if widest <= round_to:
        return 1
    fold = widest // group.width  # a position is a channel of each channel group
    return round_to // math.gcd(round_to, fold)


def _shares(group: ChannelGroup) -> tuple[float, float]:
    """Shares of the network's parameters and of its MACs that go with one position."""
    network = group.network
    cut = _removed_channels([group], [np.ones(group.width, dtype=np.bool_)])
    parameters = macs = 0.0
    for name, (inside, outside) in cut.items():
        layer = network.layers.get(name, LayerShape())  # a normalisation without parameters
        for gone, total in ((inside, layer.inputs), (outside, layer.outputs)):
            if gone and total:
                parameters += layer.parameters * gone / total / group.width
                macs += layer.macs * gone / total / group.width
    return parameters / network.parameters, macs / max(network.macs, 1)


@dataclass(frozen=True)
class _Search:
    """The shortest removal that reaches what was asked, by one threshold over all groups."""

    network: Network
    candidates: Sequence[_Candidate]

    def order(self, macs_weight: float) -> list[int]:
        """The group of every step, in the order in which steps go."""
        steps = sorted(
            (density, index, place)
            for index, candidate in enumerate(self.candidates)
            for place, density in enumerate(candidate.densities(macs_weight))
        )
        return [index for _, index, _ in steps]

    def masks_of(self, steps: Sequence[int]) -> list[Mask]:
        """What goes, by group, after these steps."""
        taken = np.bincount(np.asarray(steps, dtype=np.int64), minlength=len(self.candidates))
        return [c.mask(int(t)) for c, t in zip(self.candidates, taken, strict=True)]

    def gone(self, masks: Sequence[Mask]) -> tuple[int, int]:
        """Parameters and MACs that go."""
        parameters, macs = _counts(self.network, self.candidates, masks)
        return self.network.parameters - parameters, self.network.macs - macs

    def shortest(self, macs_weight: float, goals: Goals) -> list[Mask]:
        """The fewest steps that reach the goals at this price; all of them must be enough."""
        order = self.order(macs_weight)
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.reached(self.masks_of(order[:middle]), goals):
                high = middle
            else:
                low = middle + 1
        return self.masks_of(order[:low])

    def reached(self, masks: Sequence[Mask], goals: Goals) -> bool:
        return all(gone >= goal for gone, goal in zip(self.gone(masks), goals, strict=True))

    def masks(self, goals: Goals, macs_weight: float) -> list[Mask]:
        """The shortest removal at the price given, or where MACs weigh more, if that spares parameters.

        When the removal that reaches the parameters does too little for the MACs, going on until it does
        would take more parameters than asked. Instead MACs weigh as much as it takes, and no more.
        """
        parameters = (goals[0], 0)
        if not all(goals) or self.reached(self.shortest(macs_weight, parameters), goals):
            return self.shortest(macs_weight, goals)
        low, high = macs_weight, 1.0
        if self.reached(self.shortest(high, parameters), goals):
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                if self.reached(self.shortest(middle, parameters), goals):
                    high = middle
                else:
                    low = middle
        return self.shortest(high, goals)


def _removed_channels(groups: Sequence[ChannelGroup], masks: Sequence[Mask]) -> dict[str, tuple[int, int]]:
    """Layer -> (input channels, output channels) that go."""
    removed: dict[str, tuple[int, int]] = {}
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            count = int(mask[member.positions].sum())
            inside, outside = removed.get(member.layer, (0, 0))
            if member.side == "in":
                inside += count
            else:
                outside += count
            removed[member.layer] = (inside, outside)
    return removed


def _counts(network: Network, candidates: Sequence[_Candidate], masks: Sequence[Mask]) -> tuple[int, int]:
    """Parameters and MACs that are left."""
    parameters, macs = network.parameters, network.macs
    for name, (inside, outside) in _removed_channels([c.group for c in candidates], masks).items():
        layer = network.layers.get(name, LayerShape())
        after = layer.after(inside, outside)
        parameters += after[0] - layer.parameters
        macs += after[1] - layer.macs
    return parameters, macs


def make_plan(
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Mask],
    *,
    asked: float | None,
    asked_macs: float | None = None,
) -> PruningPlan:
    """Write out a choice of positions, group name -> ``(width,)`` mask of what goes, as a plan.

    Parameters
    ----------
    groups
        All groups of the network; those without a mask stay whole.
    asked, asked_macs
        The shares of parameters and MACs that were asked for, for the record.
    """
    network = groups[0].network
    chosen = [(g, np.asarray(removed[g.name], dtype=np.bool_)) for g in groups if g.name in removed]
    counts = _removed_channels([g for g, _ in chosen], [m for _, m in chosen])
    after = {n: s.after(*counts.get(n, (0, 0))) for n, s in network.layers.items()}
    parameters = sum(a for a, _ in after.values())
    cuts: dict[tuple[str, str], LayerCut] = {}
    for group, mask in chosen:
        for member in group.members:
            gone = member.channels[mask[member.positions]].tolist()
            key = (member.layer, member.side)
            before = cuts[key].removed if key in cuts else ()
            cuts[key] = LayerCut(
                member.layer,
                member.kind,
                member.side,
                member.dim,
                member.total,
                tuple(sorted({*before, *gone})),
            )
    return PruningPlan(
        asked,
        (network.parameters - parameters) / network.parameters,
        (network.parameters, parameters),
        (network.macs, sum(m for _, m in after.values())),
        tuple(
            GroupCut(g.name, tuple(np.flatnonzero(~m).tolist()), tuple(np.flatnonzero(m).tolist()))
            for g, m in chosen
        ),
        tuple(c for c in cuts.values() if c.removed),
        {n: (s.parameters, after[n][0]) for n, s in network.layers.items()},
        asked_macs,
    )


def _unreachable(
    asked: float,
    what: Literal["parameters", "MACs"],
    most: float,
    budget: Budget,
    groups: Sequence[ChannelGroup],
    candidates: Sequence[_Candidate],
) -> str:
    network, share = groups[0].network, math.floor(1000 * most) / 10
    weights: dict[str, int] = {}
    movable = {name for c in candidates for name in _removed_channels([c.group], [c.mask(len(c.steps))])}
    why = {p: g.reason for g in groups if not g.prunable for p in (g.producers or (g.name,))}
    for name, layer in network.layers.items():
        if name in why or name not in movable:
            weights[f"{name} ({why.get(name, 'nothing of it can go')})"] = (
                layer.macs if what == "MACs" else layer.parameters
            )
    largest = sorted(weights, key=lambda n: -weights[n])[:3]
    limit = f"--upper-limit {budget.upper_limit:g}"
    blame = f"; in the way: {', '.join(largest)}" if largest else ""
    fed = {m.layer for g in groups for m in g.members if m.side == "in"}
    fed |= {g.name for g in groups if not g.members}  # nor what is not reached
    reading = [n for n, s in network.layers.items() if MANY <= s.inputs <= MOST_FEATURES and n not in fed]
    also = f"; --prune-inputs {reading[0]} lets inputs go as well" if len(reading) == 1 else ""
    return (
        f"{asked:.1%} of the {what} cannot go: the most is {share:g} % with {limit}{blame}. "
        f"Ask for a ratio up to {share / 100:g}, or raise --upper-limit{also}."
    )
