"""A segmenter and a detector for digits on photographs: pruned, repaired, healed and fine-tuned.

    python examples/scene_jobs.py train segmenter --digits mnist.npz --photographs DIR
    python examples/scene_jobs.py compress segmenter --digits mnist.npz --photographs DIR
    python examples/scene_jobs.py table

DIR has calibration/ and held_out/ with photographs; without it, and without --digits, what scikit-learn ships
stands in. Every row is written to the results as soon as it is known, and not made again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from controls import CRITERIA, OURS, allocate
from scene_networks import SHAPE, Detector, DigitDetection, UNet
from scenes import Scenes, splits
from torch import nn

import mint_compress as mc
from mint_compress.training.evaluation import evaluate
from mint_compress.training.tasks.segmentation import Segmentation

JOBS: dict[str, tuple[Any, Any]] = {
    "segmenter": (UNet, Segmentation()),
    "detector": (Detector, DigitDetection()),
}
RESULTS = Path(__file__).parent / "results" / "scene_jobs.json"
STAGES = ("original", "pruned", "repaired", "healed", "finetuned")
SIZES = (4000, 500, 1000)

Sets = tuple[Scenes, Scenes, Scenes]


@click.group()
def main() -> None:
    """Train a base, compress it with our criterion and with L2 magnitude, print the table."""


def options(command: Any) -> Any:
    path = click.Path(path_type=Path)
    for option in (
        click.argument("job", type=click.Choice(list(JOBS))),
        click.option("--digits", type=path, help="An .npz such as MNIST's."),
        click.option("--photographs", type=path, help="A folder with calibration/ and held_out/."),
        click.option("--weights", type=path, default=Path("."), help="Folder of the bases."),
        click.option("--scenes", type=int, default=SIZES[0], help="Training scenes."),
    ):
        command = option(command)
    return command


def data_of(job: str, digits: Path | None, photographs: Path | None, scenes: int) -> Sets:
    sizes = (scenes, *(max(8, n * scenes // SIZES[0]) for n in SIZES[1:]))
    return splits(digits, photographs, (sizes[0], sizes[1], sizes[2]), boxes=job == "detector")


@main.command()
@options
@click.option("--epochs", type=int, default=20)
def train(job: str, digits: Any, photographs: Any, weights: Path, scenes: int, epochs: int) -> None:
    """Train the base from scratch."""
    network, task = JOBS[job]
    data = data_of(job, digits, photographs, scenes)
    torch.manual_seed(0)
    model = network()
    path = weights / f"{job}.pt"
    start = time.perf_counter()
    lr = 0.2 if job == "segmenter" else 0.05
    mc.finetune_(model, data[0], task=task, epochs=epochs, lr=lr, batch_size=32, device="cpu",
                 checkpoint=path.with_suffix(".training"))  # fmt: skip
    torch.save(model.state_dict(), path)
    found = evaluate(model, data[2], task)
    said = ", ".join(f"{name} {value:.2%}" for name, value in found.details.items())
    print(f"{job}: {task.metric.name} {found.value:.2%}, {said}, {time.perf_counter() - start:.0f} s")


def plans(model: nn.Module, data: Sets, ratio: float) -> dict[str, mc.PruningPlan]:
    """Ours, and L2 magnitude with the same share of every group."""
    images, _ = mc.Data.from_loaders(*data).calibration(1024, seed=0)
    groups = mc.find_groups(model, images[:1])
    found = {}
    for criterion in (OURS, "L2 magnitude"):
        scores = CRITERIA[criterion](model, groups, images, None, 0)
        if criterion == OURS:
            nats = {name: torch.from_numpy(own) for name, own in scores.items()}
            given = mc.ChannelScores(nats, "gaussian", len(images), 0)
            found["ours"] = mc.plan(groups, given, mc.Budget(ratio, round_to=1))
        else:
            left = int((1 - ratio) * groups[0].network.parameters)
            found["L2 magnitude"] = allocate(groups, scores, "uniform", left, ratio=ratio)
    return found


@main.command()
@options
@click.option("--ratio", "ratios", type=float, multiple=True, default=(0.3, 0.5, 0.7))
@click.option("--epochs", type=int, default=5, help="Of fine-tuning with labels.")
@click.option("--heal-epochs", type=int, default=10)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def compress(
    job: str, digits: Any, photographs: Any, weights: Path, scenes: int, ratios: tuple[float, ...],
    epochs: int, heal_epochs: int, results: Path,
) -> None:  # fmt: skip
    """Every stage of every ratio and criterion."""
    network, task = JOBS[job]
    data = data_of(job, digits, photographs, scenes)
    model = network()
    model.load_state_dict(torch.load(weights / f"{job}.pt", weights_only=True))
    rows = json.loads(results.read_text()) if results.exists() else []
    for ratio in ratios:
        for criterion, plan in plans(model.eval(), data, ratio).items():
            key = {
                "job": job,
                "criterion": criterion,
                "ratio": ratio,
                "epochs": epochs,
                "heal_epochs": heal_epochs,
            }
            if any(all(row[k] == v for k, v in key.items()) for row in rows):
                continue
            start = time.perf_counter()
            _, report = mc.compress(
                model, data, plan=plan, task=task, epochs=epochs, heal_epochs=heal_epochs, lr=0.02,
                batch_size=32, input_shape=SHAPE, device="cpu",
            )  # fmt: skip
            row = {
                **key, "metric": task.metric.name, "removed": plan.removed, "macs": list(plan.macs),
                **asdict(report.quality), "seconds": round(time.perf_counter() - start),
            }  # fmt: skip
            rows.append(row)
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(rows, indent=1) + "\n")
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def table(results: Path) -> None:
    """The rows as Markdown."""
    print("| job | parameters removed | criterion | MACs removed | " + " | ".join(STAGES) + " |")
    print("|" + "---|" * (4 + len(STAGES)))
    for row in json.loads(results.read_text()):
        values = ["-" if row[stage] is None else f"{100 * row[stage]:.2f}" for stage in STAGES]
        macs = f"{1 - row['macs'][1] / row['macs'][0]:.1%}"
        cells = (row["job"], f"{row['removed']:.1%}", row["criterion"], macs, *values)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
