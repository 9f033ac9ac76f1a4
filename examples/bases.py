"""The data of an experiment on the device, and the base networks, one per seed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from row_file import MAIN
from settings import Experiment, Training
from torch import Tensor, nn
from torchvision import datasets as torchvision_sets

import mint_compress as mc
from mint_compress.data.augmentation import flip_and_crop
from mint_compress.data.datasets import ImageDataset
from mint_compress.zoo import BUILDERS

DOWNLOADS = {"mnist": torchvision_sets.MNIST, "cifar10": torchvision_sets.CIFAR10}
console = Console(highlight=False, soft_wrap=True, quiet=not MAIN)


class OnDevice(ImageDataset):
    """Images that lie on the device as a whole, and are augmented there.

    ``finetune_`` passes the generator, so that an interrupted training goes on as it would have.
    """

    def __init__(self, images: Tensor, labels: Tensor, experiment: Experiment) -> None:
        self.images, self.labels = images, labels
        self.shift, self.flip = experiment.shift, experiment.flip
        # the corner pixel is background on MNIST; normalised photographs are padded with their mean
        self.background = float(images[0, 0, 0, 0]) if images.shape[1] == 1 else 0.0

    def __len__(self) -> int:
        return len(self.images)

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
        name = self.experiment.bases or self.experiment.name
        return self.weights if self.weights.is_file() else self.weights / f"{name}-{seed}.pt"

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
        mc.finetune_(
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
        if MAIN:
            temporary = path.with_suffix(".tmp")
            torch.save(
                {"arch": bench.experiment.arch, "state_dict": model.cpu().state_dict(), **found}, temporary
            )
            temporary.replace(path)
        console.print(f"{path}: test {found['test']:.2%}, {found['seconds']:.0f} s")
