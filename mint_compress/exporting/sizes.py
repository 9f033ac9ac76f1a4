"""What a report says about sizes, counted from the two networks themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.exporting.layer_breakdown import layer_counts
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_tracing import MIXES
from mint_compress.nn.counting import Macs, module_macs, parameters
from mint_compress.nn.io import Inputs
from mint_compress.reporting.records import Counts, LayerChange, LeftAlone, Share
from mint_compress.surgery.pruning_plan import PruningPlan

SPARED = "kept whole: its channels score above the threshold"


@dataclass(frozen=True)
class Sizes:
    """Fields of :class:`mint_compress.Report`, under its names."""

    ratio: Share
    parameters: Counts
    macs: Counts
    macs_ratio: float | None
    layers: tuple[LayerChange, ...]
    left_alone: tuple[LeftAlone, ...]


def sizes_of(
    original: nn.Module, pruned: nn.Module, plan: PruningPlan, groups: Sequence[ChannelGroup], example: Inputs
) -> Sizes:
    """Count both networks, and say which groups stayed whole.

    Parameters
    ----------
    original, pruned
        Both on the device of ``example``.
    plan
        What made one of the other; parameters are taken for checked, as ``prune_`` does.
    groups
        Of the original network.
    example
        A sample, batch first.

    Raises
    ------
    CheckFailed
        A share of the MACs was asked for, and the pruned network has others than the plan predicted.
    """
    counts = Counts(parameters(original), parameters(pruned))
    before, after = (module_macs(model, example) for model in (original, pruned))
    _check_macs(before, after, plan, groups)
    macs = Counts(before.total, after.total)
    return Sizes(
        ratio=Share(plan.asked, 1 - counts.after / counts.before),
        parameters=counts,
        macs=macs,
        macs_ratio=macs.before / macs.after if macs.after else None,
        layers=layer_counts(original, pruned, example),
        left_alone=_left_alone(plan, groups),
    )


def _check_macs(before: Macs, after: Macs, plan: PruningPlan, groups: Sequence[ChannelGroup]) -> None:
    """Of a plan of MACs, whether it kept its word; of the parameters prune_ has made sure."""
    if plan.asked_macs is None:
        return
    counted, predicted = after.total, plan.macs[1]
    of_layers = sum(before.layers.values())
    if plan.macs[0] == of_layers != before.total:  # a plan from before products were counted
        counted = sum(after.layers.values())
    # layers that mix places compute less, too, when channels that only pass through them go
    constant = any(group.network.unpredicted or MIXES in (group.reason or "") for group in groups)
    if counted != predicted and not (counted < predicted and constant):
        raise CheckFailed(f"The network does {counted:,} MACs; the plan, of MACs, predicted {predicted:,}.")


def unpredicted_products(groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """A line where a plan takes products of activations for as costly as they were."""
    products = groups[0].network.unpredicted if groups else ()
    if not products:
        return ()
    modules = list(dict.fromkeys(p.module or "the network itself" for p in products))
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return (
        f"{sum(p.macs for p in products):,} MACs of products of activations are counted, but the plan could "
        f"not predict how many of them go: {', '.join(modules[:3])}{more}",
    )


def _left_alone(plan: PruningPlan, groups: Sequence[ChannelGroup]) -> tuple[LeftAlone, ...]:
    """First the groups that must stay, then those of which the plan takes nothing."""
    whole = {cut.group for cut in plan.groups if not cut.removed}
    must = [LeftAlone(group.name, group.reason or "") for group in groups if not group.prunable]
    may = [LeftAlone(group.name, SPARED) for group in groups if group.prunable and group.name in whole]
    return (*must, *may)
