"""Train the paper's VGG16 with batch normalisation on scikit-learn's digits, resized to 3 x 32 x 32.

    python examples/train_vgg16_digits.py demo/vgg16.pt

About 80 seconds on two cores. The file holds {"arch", "state_dict", "settings", "accuracy"} and is what
`mint-compress` takes. A file that is there with the same settings is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from mint_compress.data.datasets import ImageDataset
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError
from mint_compress.nn.contexts import seeded
from mint_compress.training.evaluation import accuracy
from mint_compress.training.finetuning import finetune_
from mint_compress.zoo import BUILDERS

ARCH = "vgg16_cifar"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the checkpoint to write, such as demo/vgg16.pt"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="use only so many images of each split, for a quick try")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--force", action="store_true", help="train even when OUT is there")
    return parser.parse_args(argv)


def train(args: argparse.Namespace, console: Console) -> tuple[nn.Module, float, int]:
    """A trained network, its accuracy on the test images, and how many those are."""
    data = load_data("digits", input_shape=(3, 32, 32), seed=args.seed)
    training, test = (limited(part, args.images) for part in (data.augmented, data.test))
    console.print(data.description)
    with seeded(args.seed):
        model = BUILDERS[ARCH](num_classes=data.classes)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        bar = bars.add_task("training VGG16", total=None)
        finetune_(
            model,
            training,
            epochs=args.epochs,
            lr=0.03,
            batch_size=32,
            device=args.device,
            seed=args.seed,
            progress=lambda stage, done, total: bars.update(bar, completed=done, total=total),
        )
    return model, accuracy(model, test, device=args.device), len(test)


def limited(part: Any, images: int | None) -> ImageDataset:
    """The first ``images`` of a split, the whole split for None."""
    assert isinstance(part, ImageDataset)
    return part if images is None else part.subset(torch.arange(min(images, len(part))))


def existing(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path`` if this script wrote it, None otherwise."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a file that torch did not write can fail in any way
        return None
    return found if isinstance(found, dict) and {"arch", "settings", "accuracy"} <= found.keys() else None


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write to a temporary name beside ``path``, then rename: there is a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        torch.save(checkpoint, temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def run(args: argparse.Namespace, console: Console) -> None:
    settings = {"epochs": args.epochs, "seed": args.seed, "images": args.images}
    if args.out.exists() and not args.force:
        found = existing(args.out)
        if found is None or found["settings"] != settings:
            raise MintError(
                f"{args.out} is there, and not from these settings. Give another name or --force."
            )
        console.print(
            f"{args.out} is there already ({100 * found['accuracy']:.2f} % on the test images); "
            "--force trains it again.",
            highlight=False,
        )
        return
    model, share, count = train(args, console)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save({"arch": ARCH, "state_dict": state, "settings": settings, "accuracy": share}, args.out)
    console.print(
        f"{args.out}: accuracy {100 * share:.2f} % on {count} test images, "
        f"{args.out.stat().st_size / 1e6:.1f} MB",
        highlight=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse(argv)
    console = Console(soft_wrap=True)
    try:
        run(args, console)
    except MintError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
