"""One row of the results: a base compressed by one criterion, and its accuracy after each stage."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from bases import Bench, console
from controls import CRITERIA, OURS, Scores, allocate
from row_file import RowFile, circumstances
from settings import Experiment
from torch import Tensor, nn

import mint_compress as mc

ALLOCATIONS = ("uniform", "global")
EQUAL_MACS = "global, MACs of uniform"
SAME_BASE = 0.002
"""Two machines may disagree about a few test images."""


class Results(RowFile):
    """The rows of one experiment."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        super().__init__(path, {"experiment": experiment.name, "title": experiment.title})
        self.content["published"] = [list(row) for row in experiment.published]

    def check_base(self, seed: int, original: float) -> None:
        """Refuse to put rows of two base networks into one table."""
        for row in self.content["rows"]:
            if row["seed"] == seed and abs(row["accuracy"]["original"] - original) > SAME_BASE:
                raise click.ClickException(
                    f"{self.path} has rows of a base with {row['accuracy']['original']:.2%}; this one has "
                    f"{original:.2%}. Give another file with --results."
                )


@dataclass(frozen=True)
class Case:
    """One row: how channels are chosen, and what is done afterwards."""

    ratio: float
    seed: int
    criterion: str
    allocation: str
    repair: bool
    epochs: int

    @property
    def key(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def cases(experiment: Experiment, seeds: int, epochs: int, only: tuple[str, ...]) -> list[Case]:
    """Untrained: every criterion with both allocations. Trained: one each, and what controls need."""
    found = []
    ours = ("global", EQUAL_MACS) if experiment.equal_macs else ("global",)
    for seed in range(seeds):
        for ratio in experiment.ratios:
            for criterion in CRITERIA:
                for allocation in ALLOCATIONS:
                    if allocation == "uniform" or criterion != "random":
                        found.append(Case(ratio, seed, criterion, allocation, True, 0))
            if experiment.equal_macs:
                found.append(Case(ratio, seed, OURS, EQUAL_MACS, True, 0))
            if not epochs:
                continue
            found += [Case(ratio, seed, criterion, "uniform", True, epochs) for criterion in CRITERIA]
            found += [Case(ratio, seed, OURS, allocation, True, epochs) for allocation in ours]
            found += [Case(ratio, seed, c, "uniform", False, epochs) for c in (OURS, "L2 magnitude")]
            found += [Case(ratio, seed, "the shape from scratch", "uniform", False, epochs)]
    return [case for case in found if not only or case.criterion in only]


class Prepared:
    """One seed's base, groups, calibration images and scores; each computed when first asked for."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        self.model = bench.base(seed)
        self.original = bench.accuracy(self.model)
        count = max(2500, bench.experiment.calibration_images)
        images, labels = bench.data.calibration(count, seed=seed)
        self.images, self.labels = images.to(bench.device), labels.to(bench.device)
        self.groups = mc.find_groups(self.model, self.images[:1], prune_inputs=bench.experiment.prune_inputs)
        self.scores: dict[str, Scores] = {}

    @property
    def calibration(self) -> Tensor:
        return self.images[: self.bench.experiment.calibration_images]

    def scored(self, criterion: str) -> Scores:
        if criterion not in self.scores:
            labels = self.labels
            self.scores[criterion] = CRITERIA[criterion](
                self.model, self.groups, self.images, labels, self.seed
            )
        return self.scores[criterion]

    def plan(self, case: Case) -> mc.PruningPlan:
        criterion = OURS if case.criterion not in CRITERIA else case.criterion
        scores = self.scored(criterion)
        network = self.groups[0].network
        left = int((1 - case.ratio) * network.parameters)
        if criterion == OURS and case.allocation != "uniform":
            nats = {name: torch.from_numpy(own) for name, own in scores.items()}
            given = mc.ChannelScores(nats, "gaussian", len(self.calibration), self.seed)
            macs = None
            if case.allocation == EQUAL_MACS:
                before, after = allocate(self.groups, scores, "uniform", left, ratio=case.ratio).macs
                macs = 1 - after / before
            return mc.plan(self.groups, given, mc.Budget(case.ratio, macs_ratio=macs, round_to=1))
        return allocate(self.groups, scores, case.allocation, left, ratio=case.ratio)


def run(prepared: Prepared, case: Case) -> dict[str, Any]:
    """Remove, repair, train as the case says; accuracies on the test split after each stage."""
    bench, start = prepared.bench, time.perf_counter()
    plan = prepared.plan(case)
    pruned = mc.prune_(copy.deepcopy(prepared.model), plan)
    accuracy = {"original": prepared.original}
    if case.criterion in CRITERIA:
        accuracy["pruned"] = bench.accuracy(pruned)
    else:
        forget(pruned, case.seed)
    if case.repair:
        mc.compensate_(pruned, prepared.model, plan, prepared.calibration.split(64), seed=case.seed)
        accuracy["repaired"] = bench.accuracy(pruned)
    if case.epochs:
        bench.fit(pruned, bench.experiment.finetuning, case.seed, teacher=prepared.model)
        accuracy["finetuned"] = bench.accuracy(pruned)
        accuracy["validation"] = bench.accuracy(pruned, validation=True)
    return {
        **case.key,
        "accuracy": accuracy,
        "removed": plan.removed,
        "parameters": list(plan.parameters),
        "macs": list(plan.macs),
        "widths": {cut.group: len(cut.kept) for cut in plan.groups},
        "seconds": round(time.perf_counter() - start, 1),
        **circumstances(bench.device),
    }


def forget(model: nn.Module, seed: int) -> None:
    """Draw all weights anew, as the layers' classes do when they are built."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in model.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


def compress(bench: Bench, results: Results, todo: list[Case]) -> None:
    """Every case that has no row yet."""
    prepared: Prepared | None = None
    missing = [case for case in todo if not results.has(**case.key)]
    console.print(f"{len(todo) - len(missing)} of {len(todo)} rows are there")
    for done, case in enumerate(missing, start=1):
        if prepared is None or prepared.seed != case.seed:
            prepared = Prepared(bench, case.seed)
            results.check_base(case.seed, prepared.original)
        if case.criterion == "BatchNorm scale" and not has_norms(prepared.model):
            continue
        row = run(prepared, case)
        results.add(**row)
        shown = ", ".join(f"{stage} {share:.2%}" for stage, share in row["accuracy"].items())
        how = f"{case.criterion}, {case.allocation}, seed {case.seed}{'' if case.repair else ', no repair'}"
        console.print(f"{done}/{len(missing)} {row['removed']:.2%} {how}: {shown} ({row['seconds']:.0f} s)")


def has_norms(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
