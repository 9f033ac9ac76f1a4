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

from mint_compress.channels import ChannelGroup, LayerShape, Network
from mint_compress.errors import MintError
from mint_compress.features import MANY, MOST_FEATURES
from mint_compress.plans import Counted, GroupCut, LayerCut, PruningPlan
from mint_compress.scoring import ChannelScores, block_of

Cost = Literal["params", "macs", "both"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Budget:
    """What a plan must reach, and the bounds it must keep.

    Attributes
    ----------
    params, macs
        Share of all parameters, or of all MACs, that goes, above 0 and below 1: one of the two.
    upper_limit
        Largest share of one channel group's positions that may go.
    round_to
        Widths kept are multiples of this where the layer is wider.
    cost
        What a position's score is divided by before all are compared: the share of the network's
        parameters, of its MACs, or the mean of both, that goes with it.
    blocks
        Contiguous blocks per group, kept or removed whole; 0: one by one. Blocks are not rounded.
    """

    params: float | None = None
    upper_limit: float = 0.95
    round_to: int = 8
    cost: Cost = "both"
    blocks: int = 0
    macs: float | None = None

    def __post_init__(self) -> None:
        if (self.params is None) == (self.macs is None):
            raise MintError("A budget is a share of the parameters or of the MACs. Give one of the two.")
        if not 0 < self.share < 1:
            raise MintError(f"The ratio is {self.share}; it must lie between 0 and 1, e.g. 0.75.")
        if not 0 < self.upper_limit <= 1:
            raise MintError(f"The upper limit is {self.upper_limit}; it must be above 0 and at most 1.")
        if self.round_to < 1:
            raise MintError(f"Widths cannot be rounded to {self.round_to}; give 1 or more.")
        if self.cost not in ("params", "macs", "both"):
            raise MintError(f"Unknown cost {self.cost!r}. Choose from: params, macs, both.")

    @property
    def of(self) -> Counted:
        """What the share is a share of."""
        return "params" if self.macs is None else "macs"

    @property
    def share(self) -> float:
        """The share that goes."""
        share = self.params if self.macs is None else self.macs
        assert share is not None
        return share


def plan(groups: Sequence[ChannelGroup], scores: ChannelScores, budget: Budget) -> PruningPlan:
    """Choose the positions that go: those below one global threshold on nats per cost.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    scores
        One score per position of every prunable group.
    budget
        The share of parameters to remove, and the bounds to keep.

    Returns
    -------
    PruningPlan
        The plan that removes fewest positions while at least the share asked goes.

    Raises
    ------
    MintError
        When the share cannot be reached: the message says the most that can go, and which groups
        stand in the way.
    """
    candidates = [_Candidate.of(g, scores, budget) for g in groups if g.prunable]
    if not candidates:
        reasons = sorted({g.reason or "" for g in groups})
        raise MintError(f"No channel of this network can be removed: {'; '.join(reasons)[:300]}.")
    network = groups[0].network
    order = sorted(
        (density, index, place)
        for index, candidate in enumerate(candidates)
        for place, density in enumerate(candidate.densities)
    )
    which = 0 if budget.of == "params" else 1
    whole = (network.parameters, network.macs)[which]
    if not whole:
        raise MintError("This network has no convolution or linear layer to count MACs of. Give --ratio.")
    goal = math.ceil(budget.share * whole - 1e-9)

    def removed_by(count: int) -> tuple[list[Mask], int]:
        taken = [0] * len(candidates)
        for _, index, _ in order[:count]:
            taken[index] += 1
        masks = [c.mask(t) for c, t in zip(candidates, taken, strict=True)]
        return masks, whole - _counts(network, candidates, masks)[which]

    low, high = 0, len(order)
    if (most := removed_by(high)[1]) < goal:
        raise MintError(_unreachable(budget, most / whole, network, groups, candidates))
    while low < high:
        middle = (low + high) // 2
        if removed_by(middle)[1] >= goal:
            high = middle
        else:
            low = middle + 1
    return make_plan(
        groups,
        {c.group.name: m for c, m in zip(candidates, removed_by(low)[0], strict=True)},
        asked=budget.share,
        asked_of=budget.of,
    )


def most_removed(
    groups: Sequence[ChannelGroup], *, upper_limit: float = 0.95, round_to: int = 8
) -> PruningPlan | None:
    """The plan that removes all that may go; None where no group is prunable.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    upper_limit, round_to
        See :class:`Budget`.
    """
    budget = Budget(0.5, upper_limit=upper_limit, round_to=round_to)  # its ratio decides nothing here
    prunable = [g for g in groups if g.prunable]
    # which positions go makes no difference to how many can
    scores = ChannelScores({g.name: torch.zeros(g.width) for g in prunable}, "none", images=0, seed=0)
    candidates = [_Candidate.of(g, scores, budget) for g in prunable]
    masks = {c.group.name: c.mask(len(c.steps)) for c in candidates}
    return make_plan(groups, masks, asked=budget.share) if masks else None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One prunable group's removal steps: in which order its blocks go, at what price each."""

    group: ChannelGroup
    steps: tuple[NDArray[np.int64], ...]
    densities: tuple[float, ...]
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
        price = _price(group, budget.cost)
        kept, allowed, densities = group.width, [], []
        for step, value in zip(steps, values[first][ranked], strict=True):
            kept -= len(step)
            if kept < least:
                break
            allowed.append(step)
            densities.append(float(value) / (price * len(step)))
        # prices are equal within a group, so the order of removal must not be undone by block sizes
        return _Candidate(group, tuple(allowed), tuple(np.maximum.accumulate(densities)), quantum)

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


def _round_up(width: int, quantum: int, most: int) -> int:
    return min(most, -(-width // quantum) * quantum)


def _quantum(group: ChannelGroup, round_to: int) -> int:
    """Step of positions so that layer widths kept are multiples of ``round_to`` where they are wider."""
    widest = max((len(m.channels) for m in group.members if m.side == "out"), default=group.width)
    if widest <= round_to:
        return 1
    fold = widest // group.width  # a position is a channel of each channel group
    return round_to // math.gcd(round_to, fold)


def _price(group: ChannelGroup, cost: Cost) -> float:
    """Share of the network that goes with one position, by the cost that counts."""
    network = group.network
    cut = _removed_channels([group], [np.ones(group.width, dtype=np.bool_)])
    parameters = macs = 0.0
    for name, (inside, outside) in cut.items():
        layer = network.layers.get(name, LayerShape())  # a normalisation without parameters
        for gone, total in ((inside, layer.inputs), (outside, layer.outputs)):
            if gone and total:
                parameters += layer.parameters * gone / total / group.width
                macs += layer.macs * gone / total / group.width
    shares = {
        "params": parameters / network.parameters,
        "macs": macs / max(network.macs, 1),
    }
    shares["both"] = (shares["params"] + shares["macs"]) / 2
    return max(shares[cost], 1e-12)


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
    asked: float,
    asked_of: Counted = "params",
) -> PruningPlan:
    """Write out a choice of positions, group name -> ``(width,)`` mask of what goes, as a plan.

    Parameters
    ----------
    groups
        All groups of the network; those without a mask stay whole.
    asked, asked_of
        The share that was asked for, and of what, for the record.
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
        asked_of,
    )


def _unreachable(
    budget: Budget,
    most: float,
    network: Network,
    groups: Sequence[ChannelGroup],
    candidates: Sequence[_Candidate],
) -> str:
    share, of_macs = math.floor(1000 * most) / 10, budget.of == "macs"
    weights: dict[str, int] = {}
    movable = {name for c in candidates for name in _removed_channels([c.group], [c.mask(len(c.steps))])}
    why = {p: g.reason for g in groups if not g.prunable for p in (g.producers or (g.name,))}
    for name, layer in network.layers.items():
        if name in why or name not in movable:
            weights[f"{name} ({why.get(name, 'nothing of it can go')})"] = (
                layer.macs if of_macs else layer.parameters
            )
    largest = sorted(weights, key=lambda n: -weights[n])[:3]
    limit = f"--upper-limit {budget.upper_limit:g}"
    blame = f"; in the way: {', '.join(largest)}" if largest else ""
    fed = {m.layer for g in groups for m in g.members if m.side == "in"}
    fed |= {g.name for g in groups if not g.members}  # nor what is not reached
    reading = [n for n, s in network.layers.items() if MANY <= s.inputs <= MOST_FEATURES and n not in fed]
    also = f"; --prune-inputs {reading[0]} lets inputs go as well" if len(reading) == 1 else ""
    what = "MACs" if of_macs else "parameters"
    return (
        f"{budget.share:.1%} of the {what} cannot go: the most is {share:g} % with {limit}{blame}. "
        f"Ask for a ratio up to {share / 100:g}, or raise --upper-limit{also}."
    )
