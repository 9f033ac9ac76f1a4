"""The largest share that may go before the metric gets worse than is allowed, found by trying."""

from __future__ import annotations

from dataclasses import replace

from mint_compress.errors import CheckFailed, MintError
from mint_compress.nn.copying import copied
from mint_compress.nn.io import Inputs
from mint_compress.planning.search import most_removed
from mint_compress.reaching.planning import Planner
from mint_compress.recovery import refitted_
from mint_compress.reporting.records import BeforeAfter, Metric, Trial
from mint_compress.settings import Budget
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import LayerCut, PruningPlan

ROUNDS = 7
"""Networks that are cut, repaired and measured: the share is found to within a hundredth of the largest."""


def least_bad(planner: Planner, images: Inputs, budget: Budget) -> tuple[PruningPlan, tuple[Trial, ...]]:
    """The plan that removes most of those after whose repair the loss is allowed, and what was tried.

    Calibration and scores are those of the run; each network is cut out of the original, repaired, and
    measured on the validation split.

    Parameters
    ----------
    planner
        Makes the plans.
    images
        Calibration images, for the repair.
    budget
        With a ``max_drop``.

    Raises
    ------
    MintError
        Even the smallest share that was tried loses more.
    """
    run = planner.run
    assert budget.max_drop is not None and run.task is not None
    before = run.measured(run.original, validation=True)
    most = most_removed(planner.groups, budget)
    if before is None or most is None:
        raise MintError("max-drop needs data to measure on, and channels that can go.")
    low, high = 0.0, most.removed
    kept: PruningPlan | None = None
    trials: list[Trial] = []
    tried: set[tuple[LayerCut, ...]] = set()
    for done in range(ROUNDS):
        if run.progress:
            run.progress("try shares", done, ROUNDS)
        share = (low + high) / 2
        plan = replace(planner.plan(replace(budget, ratio=share)), asked=None)
        if plan.cuts in tried:  # widths go in steps: between the two there is nothing
            break
        tried.add(plan.cuts)
        small = prune_(copied(run.original), plan)
        refitted_(run, small, plan, images)
        found = run.measured(small, validation=True)
        assert found is not None
        trials.append(Trial(plan.removed, 1 - plan.macs[1] / max(plan.macs[0], 1), quality=found.value))
        if drop(run.task.metric, before.value, found.value) <= budget.max_drop:
            low, kept = min(max(share, plan.removed), high), plan
        else:
            high = share
    if run.progress:
        run.progress("try shares", ROUNDS, ROUNDS)
    if kept is None:
        least, metric = trials[-1], run.task.metric
        raise MintError(
            f"max-drop {budget.max_drop:g} cannot be kept: without {least.removed:.1%} of the parameters "
            f"the validation split gives {metric.shown(least.quality)} after repair, and the original "
            f"{metric.shown(before.value)}. Allow more, or give a --ratio and --epochs."
        )
    return kept, tuple(trials)


def drop(metric: Metric, before: float, after: float) -> float:
    """How much worse, in points where the unit is ``%``; negative where it is better."""
    lost = before - after if metric.higher_is_better else after - before
    return 100 * lost if metric.unit == "%" else lost


def check_drop(metric: Metric, validation: BeforeAfter, max_drop: float | None) -> None:
    """Fail where more was lost in the end than is allowed.

    Raises
    ------
    CheckFailed
        With both values.
    """
    first, last = validation.original, validation.compressed
    if max_drop is None or first is None or last is None:
        return
    if not drop(metric, first, last) <= max_drop:
        raise CheckFailed(
            f"On the validation split {metric.name} went from {metric.shown(first)} to {metric.shown(last)}, "
            f"more than --max-drop {max_drop:g} allows. Ask for less, or give it more --epochs."
        )
