"""Train VGG16 with batch normalisation on CIFAR-10 in few epochs, with Muon on the filters.

    ACCELERATE_MIXED_PRECISION=bf16 python examples/train_vgg16_cifar10.py --data cifar10.npz vgg16.pt

The recipe is that of fast CIFAR-10 training (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
arXiv 2404.00498, and its Muon variant): orthogonalised updates of filters whose norm is fixed, a linear decay
to zero without warm-up, label smoothing, and a flip that alternates from epoch to epoch; and a square of each
image is hidden (DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
Cutout", arXiv 1708.04552). All 50,000 training images are learnt from, as in MINT's paper; nothing is chosen
by the test images, which are looked at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mint_compress as mc
from mint_compress.data.augmentation import flip_and_crop
from mint_compress.zoo import BUILDERS

ARCH = "vgg16_cifar"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, PIECE = 1000, 125
"""Images in an update, and in a pass: batch normalisation goes by the latter."""
FILTER_LR, OTHER_LR, WEIGHT_DECAY, SMOOTHING, SHIFT = 0.08, 0.05, 5e-4, 0.2, 4


class Filters:
    """The matrices of a network for `torch.optim.Muon`, which takes nothing of more dimensions."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        # views: what the optimiser does to them is done to the filters
        self.matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in self.weights]
        self.normalise_()

    def take_gradients_(self) -> None:
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Batch normalisation takes no notice of a filter's norm, but the size of a step goes by it."""
        for matrix in self.matrices:
            matrix.mul_(len(matrix) ** 0.5 / matrix.norm())


class Recipe:
    """A training that can be gone on with after each epoch."""

    def __init__(self, model: nn.Module, epochs: int, seed: int, hidden: int) -> None:
        self.model, self.epochs, self.seed, self.hidden = model, epochs, seed, hidden
        self.filters = Filters(self.model)
        others = [p for p in self.model.parameters() if p.ndim != 4]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.filters.matrices, lr=FILTER_LR, momentum=0.6, weight_decay=0.0),
            torch.optim.SGD(others, lr=OTHER_LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY),
        ]
        self.peaks = (FILTER_LR, OTHER_LR)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.epoch = 0

    def train(self, images: Tensor, labels: Tensor, state: Path) -> None:
        if state.exists():
            self.load(torch.load(state), state)
        flipped = torch.randint(2, (len(images),), generator=torch.Generator().manual_seed(self.seed)).bool()
        while self.epoch < self.epochs:
            start = time.perf_counter()
            loss = self.pass_(images, labels, flipped ^ bool(self.epoch % 2))
            self.epoch += 1
            torch.save(self.state(), state)
            click.echo(f"epoch {self.epoch}: loss {loss:.4f}, {time.perf_counter() - start:.0f} s")

    def pass_(self, images: Tensor, labels: Tensor, flipped: Tensor) -> float:
        self.model.train()
        order = torch.randperm(len(images), generator=self.generator).split(BATCH)
        total = 0.0
        for step, rows in enumerate(order):
            left = 1 - (self.epoch + step / len(order)) / self.epochs
            for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * left
            for piece in rows.split(PIECE):
                seen = flip_and_crop(images[piece], padding=SHIFT, generator=self.generator, flip=False)
                seen = torch.where(flipped[piece, None, None, None], seen.flip(-1), seen)
                if self.hidden:
                    seen = without_square(seen, self.hidden, self.generator)
                seen = seen.contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=half_precision()):
                    outputs = self.model(seen)
                loss = F.cross_entropy(outputs.float(), labels[piece], label_smoothing=SMOOTHING)
                (loss * len(piece) / len(rows)).backward()
                total += loss.item() * len(piece)
            self.filters.take_gradients_()
            for optimizer in self.optimizers:
                optimizer.step()
            self.filters.normalise_()
            self.model.zero_grad()
        return total / len(images)

    def state(self) -> dict[str, object]:
        return {
            "asked": self.asked,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
        }

    @property
    def asked(self) -> dict[str, int]:
        return {"epochs": self.epochs, "seed": self.seed, "hidden": self.hidden}

    def load(self, state: dict[str, object], path: Path) -> None:
        if state["asked"] != self.asked:
            raise click.ClickException(
                f"{path} is of a training with {state['asked']}, and {self.asked} is asked for. "
                "Give the same settings, or delete it."
            )
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        self.generator.set_state(state["generator"])


def without_square(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set ``side`` x ``side`` pixels of each image to the mean, less where the square passes its border."""
    _, _, height, width = images.shape
    top, left = (
        torch.randint(size, (len(images), 1), generator=generator) - side // 2 for size in (height, width)
    )
    rows, columns = torch.arange(height) - top, torch.arange(width) - left
    inside = [(along >= 0) & (along < side) for along in (rows, columns)]
    return images.masked_fill((inside[0][:, None, :, None] & inside[1][:, None, None, :]), 0.0)


def half_precision() -> bool:
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", required=True, help="CIFAR-10, as mint-compress takes it.")
@click.option("--epochs", default=24)
@click.option("--hidden", default=12, help="Side of the square of each image that is hidden; 0: none.")
@click.option("--seed", default=0)
def main(out: Path, data: str, epochs: int, hidden: int, seed: int) -> None:
    """Write the trained network to OUT; OUT.training is gone on from."""
    given = mc.load_data(data, mean=MEAN, std=STD)
    parts = [source.gather(torch.arange(len(source))) for source in (given.train, given.validation)]
    images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    torch.manual_seed(seed)
    model = BUILDERS[ARCH]()
    state = out.with_suffix(".training")
    Recipe(model, epochs, seed, hidden).train(images, labels, state)
    found = mc.accuracy(model.eval(), given.test)
    torch.save({"arch": ARCH, "state_dict": model.state_dict(), "test": found}, out)
    state.unlink(missing_ok=True)
    click.echo(f"{out}: {len(images)} images, {epochs} epochs, test {found:.2%}")


if __name__ == "__main__":
    main()
