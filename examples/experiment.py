"""What the experiments share: train a base, compress it by every criterion, keep one row each, make tables.

Every row is written as soon as it is known, and a row that is there is not computed again, so a run can
be killed at any point and started again.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from controls import CRITERIA, OURS, Scores, allocate
from rich.console import Console
from tables import write
from torch import Tensor, nn
from torchvision import datasets as torchvision_sets

import mint_compress as mc
from mint_compress.datasets import ImageDataset, flip_and_crop
from mint_compress.devices import resolve_device
from mint_compress.zoo import BUILDERS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOWNLOADS = {"mnist": torchvision_sets.MNIST, "cifar10": torchvision_sets.CIFAR10}
ALLOCATIONS = ("uniform", "global")
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Training:
    """Of a base without ``distill_weight``, of a pruned network with it; see ``finetune``."""

    epochs: int
    lr: float
    batch_size: int = 128
    weight_decay: float = 5e-4
    distill_weight: float = 0.7


@dataclass(frozen=True)
class Experiment:
    """What one of the scripts tries.

    Attributes
    ----------
    dataset
        Name of the torchvision set that is downloaded when no ``--data`` is given.
    shift, flip
        Augmentation: pixels by which images move, and whether they are mirrored.
    published
        Rows (method, removed, accuracy) from papers, for the table.
    """

    name: str
    title: str
    arch: str
    dataset: str
    ratios: tuple[float, ...]
    seeds: int
    base: Training
    finetuning: Training
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    shift: int = 0
    flip: bool = False
    calibration_images: int = 1024
    published: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)


class OnDevice(ImageDataset):
    """Images that lie on the device as a whole, and are augmented there.

    ``finetune`` passes the generator, so that an interrupted training goes on as it would have.
    """

    def __init__(self, images: Tensor, labels: Tensor, experiment: Experiment) -> None:
        self.images, self.labels = images, labels
        self.shift, self.flip = experiment.shift, experiment.flip
        # the corner pixel is background on MNIST; normalised photographs are padded with their mean
        self.background = float(images[0, 0, 0, 0]) if images.shape[1] == 1 else 0.0

    def gather(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        rows = indices.to(self.images.device)
        images = flip_and_crop(
            self.images[rows],
            padding=self.shift,
            generator=generator,
            flip=self.flip,
            background=self.background,
        )
        return images, self.labels[rows]


class Results:
    """Rows in one JSON file, written anew after each of them."""

    def __init__(self, path: Path, experiment: Experiment) -> None:
        self.path = path
        self.content: dict[str, Any] = {"experiment": experiment.name, "title": experiment.title, "rows": []}
        if path.exists():
            self.content = json.loads(path.read_text())
        self.content["published"] = [list(row) for row in experiment.published]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.content["rows"])

    def add(self, **row: Any) -> None:
        self.content["rows"].append(row)
        if int(os.environ.get("RANK", 0)) == 0:  # of several processes one writes
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.path)


def open_data(experiment: Experiment, path: str | None) -> mc.Data:
    if path is None:
        root = Path.home() / ".cache" / "mint-compress"
        for train in (True, False):
            DOWNLOADS[experiment.dataset](str(root), train=train, download=True)
        path = f"{experiment.dataset}:{root}"
    return mc.load_data(path, mean=experiment.mean, std=experiment.std)


@dataclass
class Bench:
    """The data on the device, and the base network of each seed."""

    experiment: Experiment
    data: mc.Data
    device: torch.device
    weights: Path
    training: OnDevice = field(init=False)

    def __post_init__(self) -> None:
        source = self.data.train
        assert isinstance(source, ImageDataset)
        images, labels = source.gather(torch.arange(len(source)))
        self.training = OnDevice(images.to(self.device), labels.to(self.device), self.experiment)

    def accuracy(self, model: nn.Module, *, validation: bool = False) -> float:
        source = self.data.validation if validation else self.data.test
        return mc.accuracy(model, source, device=self.device)

    def path(self, seed: int) -> Path:
        """The base of a seed: FILE if ``--weights`` is a file, else in that folder."""
        return self.weights if self.weights.is_file() else self.weights / f"{self.experiment.name}-{seed}.pt"

    def base(self, seed: int) -> nn.Module:
        loaded = mc.load_model(self.path(seed), arch=self.experiment.arch)
        return loaded.module.to(self.device)

    def fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return BUILDERS[self.experiment.arch]().to(self.device)

    def fit(
        self,
        model: nn.Module,
        training: Training,
        seed: int,
        *,
        teacher: nn.Module | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        mc.finetune(
            model,
            self.training,
            teacher=teacher,
            epochs=training.epochs,
            lr=training.lr,
            batch_size=training.batch_size,
            weight_decay=training.weight_decay,
            distill_weight=training.distill_weight,
            device=self.device,
            seed=seed,
            checkpoint=checkpoint,
        )


def train(bench: Bench, seeds: int) -> None:
    """Train the base of every seed that has none."""
    for seed in range(seeds):
        path = bench.path(seed)
        if path.exists():
            console.print(f"{path} is there")
            continue
        start = time.perf_counter()
        model = bench.fresh(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        bench.fit(model, bench.experiment.base, seed, checkpoint=path.with_suffix(".training"))
        found = {
            "validation": bench.accuracy(model, validation=True),
            "test": bench.accuracy(model),
            "seconds": time.perf_counter() - start,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(
            {"arch": bench.experiment.arch, "state_dict": model.cpu().state_dict(), **found}, temporary
        )
        temporary.replace(path)
        console.print(f"{path}: test {found['test']:.2%}, {found['seconds']:.0f} s")


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
    for seed in range(seeds):
        for ratio in experiment.ratios:
            for criterion in CRITERIA:
                for allocation in ALLOCATIONS:
                    if allocation == "uniform" or criterion != "random":
                        found.append(Case(ratio, seed, criterion, allocation, True, 0))
            if not epochs:
                continue
            found += [Case(ratio, seed, criterion, "uniform", True, epochs) for criterion in CRITERIA]
            found += [Case(ratio, seed, OURS, "global", True, epochs)]
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
        self.groups = mc.find_groups(self.model, self.images[:1])
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
        if criterion == OURS and case.allocation == "global":
            nats = {name: torch.from_numpy(own) for name, own in scores.items()}
            given = mc.ChannelScores(nats, "gaussian", len(self.calibration), self.seed)
            return mc.plan(self.groups, given, mc.Budget(case.ratio, round_to=1))
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


def circumstances(device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads()
    cpu = f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": {name: version(name) for name in ("torch", "torch-pruning", "mint-compress")},
    }


def compress(bench: Bench, results: Results, todo: list[Case]) -> None:
    """Every case that has no row yet."""
    prepared: Prepared | None = None
    missing = [case for case in todo if not results.has(**case.key)]
    console.print(f"{len(todo) - len(missing)} of {len(todo)} rows are there")
    for done, case in enumerate(missing, start=1):
        if prepared is None or prepared.seed != case.seed:
            prepared = Prepared(bench, case.seed)
        if case.criterion == "BatchNorm scale" and not has_norms(prepared.model):
            continue
        row = run(prepared, case)
        results.add(**row)
        shown = ", ".join(f"{stage} {share:.2%}" for stage, share in row["accuracy"].items())
        how = f"{case.criterion}, {case.allocation}, seed {case.seed}{'' if case.repair else ', no repair'}"
        console.print(f"{done}/{len(missing)} {row['removed']:.2%} {how}: {shown} ({row['seconds']:.0f} s)")


def has_norms(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def commands(experiment: Experiment) -> click.Group:
    """``train``, ``compress`` and ``table`` of one experiment."""

    @click.group(help=experiment.title, context_settings={"show_default": True})
    def group() -> None:
        pass

    def common(function: Any) -> Any:
        for option in (
            click.option("--device", default="auto", help="auto, cpu, cuda"),
            click.option("--seeds", default=experiment.seeds, help="number of seeds"),
            click.option("--weights", default=str(HERE / "weights"), help="a checkpoint, or a folder"),
            click.option("--data", help=f".npz or {experiment.dataset}:DIR; else it is downloaded"),
        ):
            function = option(function)
        return function

    def bench(data: str | None, weights: str, device: str) -> Bench:
        where = resolve_device(device)
        return Bench(experiment, open_data(experiment, data), where, Path(weights))

    @group.command("train", help="Train the base network of every seed.")
    @common
    @click.option("--epochs", default=experiment.base.epochs)
    def _train(data: str | None, weights: str, seeds: int, device: str, epochs: int) -> None:
        ready = bench(data, weights, device)
        ready.experiment = replace(experiment, base=replace(experiment.base, epochs=epochs))
        train(ready, seeds)

    @group.command("compress", help="Compress it by every criterion; rows that are there are kept.")
    @common
    @click.option("--epochs", default=experiment.finetuning.epochs, help="0: without training")
    @click.option("--ratio", "ratios", multiple=True, type=float, help="instead of the experiment's")
    @click.option("--only", multiple=True, help="a criterion; may be repeated")
    @click.option("--results", default=str(RESULTS / f"{experiment.name}.json"))
    def _compress(
        data: str | None, weights: str, seeds: int, device: str, epochs: int,
        ratios: tuple[float, ...], only: tuple[str, ...], results: str,
    ) -> None:  # fmt: skip
        chosen = replace(
            experiment,
            ratios=ratios or experiment.ratios,
            finetuning=replace(experiment.finetuning, epochs=epochs),
        )
        ready = bench(data, weights, device)
        ready.experiment = chosen
        compress(ready, Results(Path(results), experiment), cases(chosen, seeds, epochs, only))

    @group.command("table", help="Write docs/results.md from all files in examples/results.")
    @click.option("--results", default=str(RESULTS), help="folder of the .json files")
    @click.option("--output", default=str(HERE.parent / "docs" / "results.md"))
    def _table(results: str, output: str) -> None:
        console.print(f"wrote {write(Path(results), Path(output))}")

    return group
