"""A segmenter and a detector for digits on photographs: pruned, repaired, healed and fine-tuned.

    python examples/scene_jobs.py train segmenter --digits mnist.npz --photographs DIR
    python examples/scene_jobs.py compress segmenter --digits mnist.npz --photographs DIR

DIR has calibration/ and held_out/ with photographs; without it, and without --digits, what scikit-learn ships
stands in. `python examples/mnist_mlp.py table` writes all tables.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import jobs
import torch
from scene_networks import Detector, DigitDetection, DigitSegmentation, UNet
from scene_training import fit_
from scenes import Scenes, splits

import mint_compress as mc

JOBS: dict[str, tuple[Any, Any]] = {
    "segmenter": (UNet, DigitSegmentation()),
    "detector": (Detector, DigitDetection()),
}
TITLES = {
    "segmenter": "U-Net, digits on photographs",
    "detector": "Detector with a feature pyramid, digits on photographs",
}
SIZES = (4000, 500, 1000)

Sets = tuple[Scenes, Scenes, Scenes]


@click.group()
def main() -> None:
    """Train a base, compress it with our criterion and with L2 magnitude."""


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
    fit_(model, data[0], task, epochs=epochs, state=path.with_suffix(".training"))
    torch.save(model.state_dict(), path)
    found = mc.evaluate(model, data[2], task)
    said = ", ".join(f"{name} {value:.2%}" for name, value in found.details.items())
    print(f"{job}: {task.metric.name} {found.value:.2%}, {said}, {time.perf_counter() - start:.0f} s")


@main.command()
@options
@jobs.options(ratios=(0.3, 0.5, 0.7), epochs=5)
def compress(job: str, digits: Any, photographs: Any, weights: Path, scenes: int, **given: Any) -> None:
    """Every stage of every ratio and criterion."""
    network, task = JOBS[job]
    data = mc.Data.from_loaders(*data_of(job, digits, photographs, scenes))
    model = network()
    model.load_state_dict(torch.load(weights / f"{job}.pt", weights_only=True))
    results = given.pop("results") or jobs.RESULTS / f"scenes_{job}.json"
    jobs.compress(
        model.eval(), data, task=task, lr=0.02, batch_size=32, device="cpu", title=TITLES[job],
        results=results, **given,
    )  # fmt: skip


if __name__ == "__main__":
    main()
