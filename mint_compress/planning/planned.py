"""What choosing a plan comes to."""

from __future__ import annotations

from typing import NamedTuple

from mint_compress.graph.groups import ChannelGroup
from mint_compress.reporting.records import LayerTime, Trial
from mint_compress.surgery.pruning_plan import PruningPlan


class Planned(NamedTuple):
    """A plan that stood its trial, the groups as they are since, and the plans that were tried before.

    ``layer_ms`` is what each layer takes with and without it, where the plan went by latency.
    """

    plan: PruningPlan
    groups: list[ChannelGroup]
    trials: tuple[Trial, ...] = ()
    layer_ms: tuple[LayerTime, ...] = ()
