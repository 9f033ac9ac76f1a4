"""What one run on several GPUs with ImageNet would cost, and where more of them stop to help: a calculation.

    python benchmarks/eight_gpus.py resnet50 --score 49 --serial 27

Nothing is run on several GPUs here. Measured in this process: the seconds of a core that reading one JPEG
file of 500 x 375 takes, and those of one forward pass of an image. Counted: multiply-accumulate
operations, bytes of the sums that processes would have to add up for each layer, bytes of the gradients.
Given by ``--score`` and ``--serial``: seconds of a real run's stages that are done once whatever the number
of GPUs. Assumed, and options as well: how fast a GPU computes and how fast GPUs and machines exchange bytes.

Every process takes its share of the images of each pass. A sum over p processes costs the time of a ring
all-reduce, 2 (p-1)/p times its bytes over the link, and 2 (p-1) latencies.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import nn

from mint_compress.data.image_files import read_pixels
from mint_compress.data.synthetic import synthetic_images
from mint_compress.nn.counting import module_macs, parameters
from mint_compress.nn.layers import channel_groups, in_channels, matrix_columns, out_channels
from mint_compress.nn.moments import MAX_COLUMNS, rows_wanted

DOUBLE, SINGLE = 8, 4
TRAIN, HELD_OUT, TEST = 1_281_167 - 5_000, 5_000, 50_000
GPUS = (1, 2, 4, 8, 16, 32, 64)
PER_MACHINE = 8
WORTH = 1.5
"""Doubling the GPUs is said to help as long as the run becomes so many times as fast."""


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("network", help="of torchvision.models")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of parameters and MACs that goes")
    parser.add_argument("--calibration", type=int, default=1024, help="images")
    parser.add_argument("--heal-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024, help="images a step of the fine-tuning, in all")
    parser.add_argument("--score", type=float, required=True, help="seconds of scoring, measured")
    parser.add_argument("--serial", type=float, required=True, help="seconds of analysis, export and checks")
    parser.add_argument("--flops", type=float, default=1e14, help="a GPU's, reached in training and passes")
    parser.add_argument("--link", type=float, default=1e11, help="bytes a second between GPUs of a machine")
    parser.add_argument("--network-link", type=float, default=1e10, help="bytes a second between machines")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds of one message")
    parser.add_argument("--cores", type=int, default=12, help="that read images, for each GPU")
    return parser.parse_args()


@dataclass(frozen=True)
class Pieces:
    """What a run is made of.

    Attributes
    ----------
    macs, weights
        Of the original, for one image, and its parameters.
    products
        Multiply-accumulate operations of all second moments, whatever the number of images.
    scoring, repair
        Bytes that are added up for each layer, in its order.
    read, forward
        Seconds of a core here to read one image, and for one forward pass of it.
    """

    macs: int
    weights: int
    products: int
    scoring: list[int]
    repair: list[int]
    read: float
    forward: float


def counted(name: str, images: int) -> Pieces:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name).eval()
    macs = module_macs(model, torch.zeros(1, 3, 224, 224))
    scoring, repair, products = [], [], 0
    for layer, own in macs.layers.items():
        module = model.get_submodule(layer)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        columns, groups, outputs = matrix_columns(module), channel_groups(module), out_channels(module)
        wide = columns > MAX_COLUMNS
        side = in_channels(module) // groups if wide else columns
        scoring.append(DOUBLE * groups * side * (side + 1))
        # of rows for the fit and of rows held out; a wide layer keeps rows, at most as many as columns
        repair.append(2 * DOUBLE * (groups * min(columns, MAX_COLUMNS) ** 2 + columns * outputs))
        places = max(1, own // module.weight.numel())
        rows = images * min(places, rows_wanted(columns, images, groups))
        products += 2 * rows * groups * side**2
    return Pieces(macs.total, parameters(model), products, scoring, repair, reading(), passing(model))


def reading(files: int = 40) -> float:
    """Seconds for one file, of photographs' statistics."""
    pictures = synthetic_images(4, (3, 375, 500), seed=0).mul(50).add(120).clamp(0, 255).byte()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.jpg") for i in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path, quality=90)
        read_pixels(paths[0], (3, 224, 224))
        start = time.process_time()
        for i in range(files):
            read_pixels(paths[i % len(paths)], (3, 224, 224))
        return (time.process_time() - start) / files


def passing(model: nn.Module, images: int = 16) -> float:
    """Seconds for one image."""
    x = torch.randn(images, 3, 224, 224)
    with torch.inference_mode():
        model(x[:2])
        start = time.process_time()
        model(x)
        return (time.process_time() - start) / images


class Run:
    """Seconds of each stage, by the number of GPUs."""

    def __init__(self, options: argparse.Namespace, pieces: Pieces) -> None:
        self.options, self.pieces = options, pieces

    def computing(self, macs: float, gpus: int) -> float:
        return 2 * macs / self.options.flops / gpus

    def reading(self, images: float, gpus: int) -> float:
        return images * self.pieces.read / (self.options.cores * gpus)

    def adding_up(self, sizes: list[int], gpus: int) -> float:
        if gpus == 1:
            return 0.0
        link = self.options.link if gpus <= PER_MACHINE else self.options.network_link
        ring = 2 * (gpus - 1)
        return sum(ring / gpus * size / link + ring * self.options.latency for size in sizes)

    def stages(self, gpus: int) -> dict[str, float]:
        given, own = self.options, self.pieces
        left, images = 1 - given.ratio, given.calibration
        measured = {  # test images five times, those held out three times, mostly by the smaller network
            "macs": own.macs * (2 + 3 * left) / 5,
            "images": 5 * TEST + 3 * HELD_OUT,
        }
        steps = math.ceil(TRAIN / given.batch) * given.epochs
        gradients = [int(SINGLE * own.weights * left)]
        learning = own.macs * (1 + 3 * left)  # the original's outputs, and a forward and a backward pass
        heal_steps = given.heal_epochs * max(1, images // 64)
        return {
            "calibrate": self.computing(own.macs * images + own.products / 2, gpus)
            + self.reading(images, gpus) + self.adding_up(own.scoring, gpus),
            "score": given.score,
            "repair": self.computing(own.macs * (1 + left) * images + own.products, gpus)
            + self.adding_up(own.repair, gpus),
            "heal": self.computing(learning * images * given.heal_epochs, gpus)
            + heal_steps * self.adding_up(gradients, gpus),
            "measure": max(self.computing(measured["macs"] * measured["images"], gpus),
                           self.reading(measured["images"], gpus)),
            "fine-tune": max(self.computing(learning * TRAIN * given.epochs, gpus),
                             self.reading(TRAIN * given.epochs, gpus))
            + steps * self.adding_up(gradients, gpus),
            "analyse, export, check": given.serial,
        }  # fmt: skip


def main() -> None:
    options = parse()
    pieces = counted(options.network, options.calibration)
    run = Run(options, pieces)
    mib = 2**20
    print(f"{options.network}: {pieces.macs / 1e9:.2f} GMACs an image, "
          f"{pieces.weights / 1e6:.1f} M parameters")  # fmt: skip
    print(f"measured here: {pieces.read * 1e3:.1f} ms of a core to read an image, {pieces.forward * 1e3:.0f} "
          "ms for its forward pass")  # fmt: skip
    print(f"assumed: {options.flops:.3g} FLOP/s a GPU, so {2e3 * pieces.macs / options.flops:.3g} ms for its "
          f"forward pass; {options.link:.3g} B/s within and {options.network_link:.3g} B/s between machines "
          f"of {PER_MACHINE}; {options.latency:.3g} s a message; {options.cores} cores a GPU")  # fmt: skip
    for stage, sizes in (("calibration", pieces.scoring), ("repair", pieces.repair)):
        print(f"added up in the {stage}: {sum(sizes) / mib:,.0f} MiB in {len(sizes)} layers, the largest "
              f"{max(sizes) / mib:,.0f} MiB")  # fmt: skip
    gradients = SINGLE * pieces.weights * (1 - options.ratio) / mib
    print(f"in each step of the fine-tuning: {gradients:,.0f} MiB of gradients")
    found = {gpus: run.stages(gpus) for gpus in GPUS}
    print(f"\n| seconds with GPUs | {' | '.join(map(str, GPUS))} |")
    print("|---" * (len(GPUS) + 1) + "|")
    for stage in found[1]:
        print(f"| {stage} | {' | '.join(f'{found[gpus][stage]:,.3g}' for gpus in GPUS)} |")
    totals = {gpus: sum(stages.values()) for gpus, stages in found.items()}
    print(f"| in all | {' | '.join(f'{total:,.0f}' for total in totals.values())} |")
    print(f"| times as fast as one | {' | '.join(f'{totals[1] / total:.1f}' for total in totals.values())} |")
    helps = [b for a, b in pairwise(GPUS) if totals[a] / totals[b] >= WORTH]
    last = helps[-1] if helps else 1
    longest = max(found[last], key=lambda stage: found[last][stage] - found[1][stage] / last)
    print(f"\nDoubling makes the run at least {WORTH} times as fast up to {last} GPUs; what does not shrink "
          f"there is mostly: {longest}.")  # fmt: skip
    print(f"8 GPUs: {totals[8] / 3600:.2f} hours, {8 * totals[8] / 3600:.1f} GPU hours.")


if __name__ == "__main__":
    main()
