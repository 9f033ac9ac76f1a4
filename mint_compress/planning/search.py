"""The search for a plan: the fewest positions, by one threshold over all groups, that reach the budget.

Nothing here touches a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mint_compress.errors import MintError
from mint_compress.graph.costs import Network
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.candidates import Candidate, Values, candidate
from mint_compress.planning.choices import Mask, counts_left, make_plan, removed_channels
from mint_compress.planning.latency import NetworkTimes
from mint_compress.planning.prices import PRICES, Price
from mint_compress.planning.unreachable import Kind, blame, unreachable
from mint_compress.scoring.scores import ChannelScores
from mint_compress.settings import Budget
from mint_compress.surgery.pruning_plan import PruningPlan

STEPS = (8, 4, 2, 1)
"""Of widths, where none is asked for."""
TOO_MUCH = 0.02
"""The share beyond what was asked from which on a finer step of widths is tried."""
HALVINGS = 16
"""Steps of the search for the least weight of the MACs that is enough."""
Goals = tuple[int, int, float]
"""How many parameters, MACs and milliseconds have to go at least."""


def plan(
    groups: Sequence[ChannelGroup],
    scores: ChannelScores,
    budget: Budget,
    *,
    times: NetworkTimes | None = None,
    saving: float = 0.0,
) -> PruningPlan:
    """Choose the positions that go: those below one global threshold on nats per cost.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    scores
        One score per position of every prunable group.
    budget
        The shares to remove, and the bounds to keep.
    times
        What single layers take, for a budget whose price is latency, and for ``saving``.
    saving
        Milliseconds that have to go at least, as ``times`` predict them.

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
    if budget.ratio is None and budget.macs_ratio is None and not saving:
        raise MintError("A budget is a share of the parameters, of the MACs, or both. Give one.")
    if times is None and (saving or budget.price == "latency"):
        raise MintError("What latency costs is not known. Give the times of the layers, or another --cost.")
    if not any(g.prunable for g in groups):
        reasons = sorted({g.reason or "" for g in groups})
        raise MintError(f"No channel of this network can be removed: {'; '.join(reasons)[:300]}.")
    network = groups[0].network
    if budget.macs_ratio is not None and not network.macs:
        raise MintError("This network has no convolution or linear layer to count MACs of. Give --ratio.")
    *coarser, finest = _roundings(budget)
    for one in coarser:
        chosen = _rounded(groups, scores, one, times, saving)
        if isinstance(chosen, PruningPlan) and not _overshoots(chosen):
            return chosen
    chosen = _rounded(groups, scores, finest, times, saving)
    if isinstance(chosen, PruningPlan):
        return chosen
    candidates, most = chosen
    goals = _goals(network, finest, saving)
    limit = budget.upper_limit
    if budget.ratio is not None and most[0] < goals[0]:
        share = most[0] / network.parameters
        raise MintError(unreachable(budget.ratio, "parameters", share, limit, groups, candidates))
    if budget.macs_ratio is not None and most[1] < goals[1]:
        share = most[1] / network.macs
        raise MintError(unreachable(budget.macs_ratio, "MACs", share, limit, groups, candidates))
    assert times is not None
    raise MintError(
        unreachable(saving / times.whole, "latency", most[2] / times.whole, limit, groups, candidates)
    )


def _roundings(budget: Budget) -> list[Budget]:
    """The budget with the steps of widths to be tried, the coarsest first."""
    if budget.round_to is not None:
        return [budget]
    return [replace(budget, round_to=step) for step in ((1,) if budget.blocks else STEPS)]


def _overshoots(chosen: PruningPlan) -> bool:
    """Whether so much more goes than was asked that a finer step would help."""
    gone = [(before - after) / max(before, 1) for before, after in (chosen.parameters, chosen.macs)]
    asked = zip(gone, (chosen.asked, chosen.asked_macs), strict=True)
    return min((share - wanted for share, wanted in asked if wanted is not None), default=0.0) > TOO_MUCH


def _rounded(
    groups: Sequence[ChannelGroup],
    scores: ChannelScores,
    budget: Budget,
    times: NetworkTimes | None,
    saving: float,
) -> PruningPlan | tuple[list[Candidate], Goals]:
    """The plan with one step of widths; or what may go, and how much of what is asked that comes to."""
    network = groups[0].network
    candidates = [_within(g, scores.nats[g.name].cpu().numpy(), budget, times) for g in groups if g.prunable]
    goals = _goals(network, budget, saving)
    search = _Search(network, candidates, times)
    most = search.gone([one.largest_mask() for one in candidates])
    if any(gone < goal for gone, goal in zip(most, goals, strict=True)):
        return candidates, most
    masks = search.masks(goals, PRICES[budget.price])
    chosen = make_plan(
        groups,
        {c.group.name: m for c, m in zip(candidates, masks, strict=True)},
        asked=budget.ratio,
        asked_macs=budget.macs_ratio,
    )
    return replace(chosen, round_to=budget.round_to)


def _goals(network: Network, budget: Budget, saving: float) -> Goals:
    return _goal(budget.ratio, network.parameters), _goal(budget.macs_ratio, network.macs), saving


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
    # which positions go makes no difference to how many can
    candidates = [_within(g, np.zeros(g.width), budget) for g in groups if g.prunable]
    masks = {c.group.name: c.largest_mask() for c in candidates}
    return make_plan(groups, masks, asked=None) if masks else None


def in_the_way(groups: Sequence[ChannelGroup], budget: Budget, what: Kind) -> str:
    """``; in the way: a (why), b (why)``: the layers that count most of those that stay whole, or nothing."""
    candidates = [_within(g, np.zeros(g.width), budget) for g in groups if g.prunable]
    return blame(what, groups, candidates)


def _within(
    group: ChannelGroup, values: Values, budget: Budget, times: NetworkTimes | None = None
) -> Candidate:
    """What may go of a group within the budget's bounds."""
    return candidate(
        group, values, upper_limit=budget.upper_limit, round_to=budget.round_to or 1, blocks=budget.blocks,
        times=times,
    )  # fmt: skip


@dataclass(frozen=True)
class _Search:
    """The shortest removal that reaches what was asked, by one threshold over all groups."""

    network: Network
    candidates: Sequence[Candidate]
    times: NetworkTimes | None = None

    def order(self, price: Price) -> list[int]:
        """The group of every step, in the order in which steps go."""
        steps = sorted(
            (density, index, place)
            for index, one in enumerate(self.candidates)
            for place, density in enumerate(one.densities(price))
        )
        return [index for _, index, _ in steps]

    def masks_of(self, steps: Sequence[int]) -> list[Mask]:
        """What goes, by group, after these steps."""
        taken = np.bincount(np.asarray(steps, dtype=np.int64), minlength=len(self.candidates))
        return [c.mask(int(t)) for c, t in zip(self.candidates, taken, strict=True)]

    def gone(self, masks: Sequence[Mask]) -> Goals:
        """Parameters, MACs and milliseconds that go."""
        groups = [c.group for c in self.candidates]
        parameters, macs = counts_left(self.network, groups, masks)
        saved = self.times.saved(self.network, removed_channels(groups, masks)) if self.times else 0.0
        return self.network.parameters - parameters, self.network.macs - macs, saved

    def shortest(self, price: Price, goals: Goals) -> list[Mask]:
        """The fewest steps that reach the goals at this price; all of them must be enough."""
        order = self.order(price)
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.reached(self.masks_of(order[:middle]), goals):
                high = middle
            else:
                low = middle + 1
        return self.masks_of(order[:low])

    def reached(self, masks: Sequence[Mask], goals: Goals) -> bool:
        """Whether enough goes of both."""
        return all(gone >= goal for gone, goal in zip(self.gone(masks), goals, strict=True))

    def masks(self, goals: Goals, price: Price) -> list[Mask]:
        """The shortest removal at the price given, or where MACs weigh more, if that spares parameters.

        When the removal that reaches the parameters does too little for the MACs, going on until it does
        would take more parameters than asked. Instead MACs weigh as much as it takes, and no more.
        """
        without_macs = (goals[0], 0, goals[2])
        if not all(goals[:2]) or self.reached(self.shortest(price, without_macs), goals):
            return self.shortest(price, goals)
        low, high, macs = 0.0, 1.0, PRICES["macs"]
        if self.reached(self.shortest(macs, without_macs), goals):
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                if self.reached(self.shortest(price.towards(macs, middle), without_macs), goals):
                    high = middle
                else:
                    low = middle
        return self.shortest(price.towards(macs, high), goals)
