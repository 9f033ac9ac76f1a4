"""Scenes: handwritten digits on crops of photographs, with a label map and boxes for each.

Digits come from an .npz with Keras' keys (MNIST), or from scikit-learn's bundled ones; photographs from a
folder, or the two that scikit-learn ships. Digits and photographs of the test scenes are in no other scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

SIZE = 64
CLASSES = 10
VISIBLE = 0.35
"""A pixel belongs to a digit whose ink covers it by so much."""


@dataclass(frozen=True)
class Sources:
    """Digits (n, 28, 28) in 0..1 with their classes, and photographs (3, H, W) in 0..1."""

    digits: Tensor
    classes: Tensor
    photographs: list[Tensor]


def read(digits: Path | None, photographs: Path | None, *, test: bool, limit: int = 400) -> Sources:
    """The sources of the training scenes, or of the test scenes."""
    return Sources(*_digits(digits, test), _photographs(photographs, test, limit))


def _digits(path: Path | None, test: bool) -> tuple[Tensor, Tensor]:
    if path is not None:
        with np.load(path) as file:
            part = "test" if test else "train"
            images, labels = file[f"x_{part}"], file[f"y_{part}"]
        return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    images = functional.interpolate(images, (28, 28), mode="bilinear", antialias=True)[:, 0]
    labels = torch.from_numpy(found.target).long()
    rows = slice(1400, None) if test else slice(1400)
    return images[rows], labels[rows]


def _photographs(folder: Path | None, test: bool, limit: int) -> list[Tensor]:
    if folder is None:
        from sklearn.datasets import load_sample_images

        name = "flower.jpg" if test else "china.jpg"
        found = load_sample_images()
        image = found.images[[Path(n).name for n in found.filenames].index(name)]
        return [torch.tensor(np.asarray(image)).permute(2, 0, 1).float() / 255]
    from torchvision.io import decode_image

    files = sorted((folder / ("held_out" if test else "calibration")).glob("*.jpg"))[:limit]
    return [decode_image(str(path)).float() / 255 for path in files]


def composed(sources: Sources, count: int, seed: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """So many scenes: images (n, 3, 64, 64) in -2..2, label maps (n, 64, 64) with 0 for the background and
    d + 1 for digit d, and a dict of boxes (k, 4), x1 y1 x2 y2, and labels (k,), d, for each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 3, SIZE, SIZE)
    maps = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    boxes = []
    for i in range(count):
        canvas = _crop(sources.photographs, generator)
        found = []
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            place = _free_place([box for box, _ in found], generator)
            if place is None:
                continue
            row = int(torch.randint(len(sources.digits), (), generator=generator))
            box = _draw_(canvas, maps[i], sources.digits[row], int(sources.classes[row]), place, generator)
            found.append((box, int(sources.classes[row])))
        images[i] = (canvas - 0.5) / 0.25
        boxes.append(
            {
                "boxes": torch.tensor([box for box, _ in found]).view(-1, 4).float(),
                "labels": torch.tensor([label for _, label in found], dtype=torch.int64),
            }
        )
    return images, maps, boxes


def _crop(photographs: list[Tensor], generator: torch.Generator) -> Tensor:
    photograph = photographs[int(torch.randint(len(photographs), (), generator=generator))]
    side = int(min(photograph.shape[1:]) * (0.3 + 0.7 * float(torch.rand((), generator=generator))))
    top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in photograph.shape[1:])
    crop = photograph[None, :, top : top + side, left : left + side]
    return functional.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)[0]


def _free_place(taken: list[list[int]], generator: torch.Generator) -> tuple[int, int, int] | None:
    """Side, top and left of a square that touches no box."""
    for _ in range(20):
        side = int(torch.randint(18, 37, (), generator=generator))
        top, left = torch.randint(SIZE - side + 1, (2,), generator=generator).tolist()
        if all(left + side <= b[0] or b[2] <= left or top + side <= b[1] or b[3] <= top for b in taken):
            return side, top, left
    return None


def _draw_(
    canvas: Tensor, labels: Tensor, digit: Tensor, number: int, place: tuple[int, int, int],
    generator: torch.Generator,
) -> list[int]:  # fmt: skip
    """Put a digit into scene and map; return the box of its ink."""
    side, top, left = place
    ink = functional.interpolate(digit[None, None], (side, side), mode="bilinear", antialias=True)[0, 0]
    window = canvas[:, top : top + side, left : left + side]
    # lighter or darker than what is there
    bright = float(window.mean()) < 0.5
    colour = (0.7 if bright else 0.0) + 0.3 * torch.rand(3, 1, 1, generator=generator)
    window.copy_(window * (1 - ink) + colour * ink)
    there = ink > VISIBLE
    labels[top : top + side, left : left + side][there] = number + 1
    rows, columns = (there.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]


class Scenes(Dataset[Any]):
    """Scenes with their maps, or with their boxes."""

    def __init__(self, images: Tensor, targets: Any) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[index], self.targets[index]

    def batch(self, rows: list[int]) -> tuple[Tensor, Any]:
        """Some of them: maps in a tensor, boxes in a list."""
        if isinstance(self.targets, Tensor):
            return self.images[rows], self.targets[rows]
        return self.images[rows], [self.targets[row] for row in rows]


def splits(
    digits: Path | None, photographs: Path | None, sizes: tuple[int, int, int], *, boxes: bool
) -> tuple[Scenes, Scenes, Scenes]:
    """Training, validation and test scenes; the first two of other draws from the same sources."""
    made = []
    for number, count in enumerate(sizes):
        sources = read(digits, photographs, test=number == 2)
        images, maps, found = composed(sources, count, seed=number)
        made.append(Scenes(images, found if boxes else maps))
    return made[0], made[1], made[2]
