"""A small task for small networks: which quarter of the image is bright."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mint_compress.data.data import Data
from mint_compress.data.datasets import ArrayDataset

SHAPE = (3, 6, 6)
CLASSES = 4
SIZES = (120, 40, 80)


def task(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """``(count, 3, 6, 6)`` noise with one bright quarter, and ``(count,)`` its number."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *SHAPE, generator=generator)
    labels = torch.arange(count) % CLASSES
    for number, (top, left) in enumerate(((0, 0), (0, 3), (3, 0), (3, 3))):
        images[labels == number, number % 3, top : top + 3, left : left + 3] += 2 + number
    return images, labels


def arrays() -> Data:
    """The task as the object that a data spec stands for."""
    sets = [ArrayDataset(*task(n, seed=i), mean=None, std=None) for i, n in enumerate(SIZES)]
    return Data(*sets, sets[0], CLASSES, SHAPE, None, None, "quarters", SIZES, "quarters of toy images")


def loaders() -> dict[str, DataLoader[tuple[Tensor, ...]]]:
    """The task as a user's function gives it."""
    names = ("train", "val", "test")
    sets = {
        name: TensorDataset(*task(n, seed=i)) for i, (name, n) in enumerate(zip(names, SIZES, strict=True))
    }
    return {name: DataLoader(data, batch_size=32) for name, data in sets.items()}


def tables() -> dict[str, DataLoader[tuple[Tensor, ...]]]:
    """Rows of thirty numbers, of which three tell the class; for ``--data toydata:tables``."""
    splits = {}
    for seed, split in enumerate(("train", "val", "test")):
        rows = torch.randn(300, 30, generator=torch.Generator().manual_seed(seed))
        labels = (rows[:, 3] + rows[:, 7] * rows[:, 11] > 0).long()
        splits[split] = DataLoader(TensorDataset(rows, labels), batch_size=50)
    return splits
