"""A plan from elsewhere, held against the channel groups of the network that it is to be applied to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mint_compress.errors import MintError
from mint_compress.graph.finding import after_trial
from mint_compress.graph.groups import ChannelGroup
from mint_compress.nn.io import Inputs
from mint_compress.surgery.pruning_plan import PruningPlan


def check_plan(
    model: nn.Module, example_inputs: Inputs, groups: Sequence[ChannelGroup], plan: PruningPlan
) -> None:
    """Refuse a plan that takes what must stay, or does more than take channels out.

    Parameters
    ----------
    model, example_inputs
        As given to :func:`find_groups`.
    groups
        What it found.

    Raises
    ------
    MintError
        The group, and why it must stay.
    """
    taken = {cut.group for cut in plan.groups if cut.removed}
    for group in groups:
        if group.name in taken and not group.prunable:
            raise MintError(
                f"The plan takes channels of {group.name}, which must stay: {group.reason}. "
                "Write a new one with --dry-run."
            )
    for before, after in zip(groups, after_trial(model, example_inputs, groups, plan), strict=True):
        if after.reason != before.reason:
            raise MintError(f"The plan is wrong at {after.name}: {after.reason}. Write one with --dry-run.")
