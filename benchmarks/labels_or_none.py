"""Fine-tuning with labels, and towards the original without any, from the same healed network.

    python benchmarks/labels_or_none.py RESNET56.th CIFAR10.npz labels
    python benchmarks/labels_or_none.py RESNET56.th CIFAR10.npz imitation

The public ResNet-56 without 70 % of its parameters, repaired and healed on 1,024 images, then five epochs on
the training images of CIFAR-10 (45,000; 5,000 are held out) at the command's other defaults. Each takes half
an hour on one core.
"""

from __future__ import annotations

import time

import click
from healing import MEAN, STD, shrunk
from torch.utils.data import DataLoader

import mint_compress as mint
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.imitation import Imitation

TASKS = {"labels": Classification(), "imitation": Imitation()}


@click.command()
@click.argument("weights")
@click.argument("data")
@click.argument("towards", type=click.Choice(list(TASKS)))
@click.option("--ratio", type=float, default=0.7)
@click.option("--epochs", type=int, default=5)
def main(weights: str, data: str, towards: str, ratio: float, epochs: int) -> None:
    """Print the accuracy on the test split after each stage."""
    model = mint.load_model(weights, arch="resnet56_cifar").module.eval()
    sets = mint.load_data(data, mean=MEAN, std=STD)
    small, plan = shrunk(model, sets, ratio)
    print(f"repaired {mint.accuracy(small, sets.test):.2%}")
    images, _ = sets.calibration(1024, seed=0)
    held_out, _ = next(iter(DataLoader(sets.validation, 256)))
    mint.heal_(small, model, plan, images, held_out=held_out, device="cpu")
    print(f"healed {mint.accuracy(small, sets.test):.2%}")
    start = time.perf_counter()
    mint.finetune_(small, sets.augmented, task=TASKS[towards], teacher=model, epochs=epochs, device="cpu")
    print(f"{towards} {mint.accuracy(small, sets.test):.2%}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
