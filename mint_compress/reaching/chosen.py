"""The plan of a run: scored, and searched for where a latency or a bound on the loss is asked for."""

from __future__ import annotations

from mint_compress import processes
from mint_compress.exporting.shipping import Shipment
from mint_compress.nn.io import Inputs, split
from mint_compress.planning.planned import Planned
from mint_compress.planning.search import STEPS
from mint_compress.reaching.loss import least_bad
from mint_compress.reaching.planning import Planner
from mint_compress.reaching.speed import fast_enough, network_times
from mint_compress.reporting.records import Trial
from mint_compress.resuming.forms import SCORES
from mint_compress.run import Run
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.scores import ChannelScores, score
from mint_compress.settings import SAMPLES_PER_CLASS
from mint_compress.surgery.pruning_plan import PruningPlan


def chosen_plan(run: Run, images: Inputs, shipment: Shipment | None) -> Planned:
    """Score, and plan until the plan stands its trial and does what is asked of it.

    Parameters
    ----------
    run
        With the groups that were found.
    images
        Calibration images.
    shipment
        With the original's export, by which speed is measured.
    """
    budget = run.settings.budget
    if budget.blocks and budget.round_to != 1:
        run.notes.append(f"--blocks {budget.blocks} keeps blocks whole: widths are not rounded")
    scores = run.once("scores", lambda: _scored(run, images), SCORES)
    planner, trials = Planner(run, scores, run.groups), tuple[Trial, ...]()
    if shipment is not None and (budget.timed or budget.price == "latency"):
        planner.times = network_times(run, shipment, images)
    if budget.timed:
        assert shipment is not None
        plan, trials = fast_enough(planner, shipment, images, budget)
    elif budget.searched:
        plan, trials = least_bad(planner, images, budget)
    else:
        plan = planner.plan(budget)
    if budget.round_to is None and not budget.blocks and plan.round_to in STEPS[1:]:
        run.notes.append(
            f"widths kept are multiples of {plan.round_to}: with multiples of {STEPS[0]} more would go than "
            f"asked, or less can; --round-to {STEPS[0]} keeps to those"
        )
    run.notes += little_computed(plan, budget.price)
    plan = processes.by_main(lambda: plan)
    layers = () if planner.times is None else planner.times.of_layers(run.groups[0].network, plan.gone)
    return Planned(plan, planner.groups, trials, layers)


def _scored(run: Run, images: Inputs) -> ChannelScores:
    """Calibrate and score."""
    settings = run.settings
    estimator, samples = settings.scoring.estimator, settings.scoring.takes_samples
    if samples:
        each, classes = settings.scoring.samples_per_class, (run.data and run.data.classes) or 10
        asked = None if each is None else each * classes
        images = run.draw(asked, SAMPLES_PER_CLASS * classes, f"for {estimator}, ")
    calibration = calibrate(
        run.original, run.groups, split(images, run.batch), seed=run.seed,
        moments=not samples, samples=samples, progress=run.progress,
    )  # fmt: skip
    if alike := sorted(set(calibration.moments) - set(calibration.sensitivity)):
        layers = ", ".join(alike)
        run.notes.append(f"without a backward pass, all outputs of these layers count alike: {layers}")
    return score(
        run.groups, calibration, estimator=estimator, blocks=settings.budget.blocks, seed=run.seed,
        progress=run.progress,
    )  # fmt: skip


def little_computed(plan: PruningPlan, cost: str) -> tuple[str, ...]:
    """A line where the network gets smaller and hardly faster, as long as something can be done about it."""
    parameters, macs = (1 - after / before for before, after in (plan.parameters, plan.macs))
    if cost in ("macs", "latency") or plan.asked_macs is not None or macs > parameters / 4:
        return ()
    return (
        f"{parameters:.0%} of the parameters go, but {macs:.1%} of the MACs: they are where little is "
        "computed. --macs-ratio asks for a share of those as well",
    )
