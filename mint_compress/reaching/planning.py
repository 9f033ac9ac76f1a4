"""Plans of one run: each is tried on the network in float64 before it counts."""

from __future__ import annotations

from dataclasses import dataclass

from mint_compress.graph.finding import after_trial
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.latency import NetworkTimes
from mint_compress.planning.search import plan as choose_plan
from mint_compress.run import Run
from mint_compress.scoring.scores import ChannelScores
from mint_compress.settings import Budget
from mint_compress.surgery.pruning_plan import PruningPlan


@dataclass
class Planner:
    """Makes plans out of the scores of one run.

    Attributes
    ----------
    groups
        All channel groups; those that cannot lose what a plan took from them are left alone from then on.
    times
        What single layers take, where that is known.
    """

    run: Run
    scores: ChannelScores
    groups: list[ChannelGroup]
    times: NetworkTimes | None = None

    def plan(self, budget: Budget, *, saving: float = 0.0) -> PruningPlan:
        """A plan that has stood its trial; see :func:`mint_compress.planning.search.plan`."""
        while True:
            chosen = choose_plan(self.groups, self.scores, budget, times=self.times, saving=saving)
            tried = after_trial(self.run.original, self.run.example, self.groups, chosen)
            if [g.prunable for g in tried] == [g.prunable for g in self.groups]:
                return chosen
            self.groups = tried
