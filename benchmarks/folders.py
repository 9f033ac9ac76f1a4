"""How fast many small image files are read, and in how much memory, beside torchvision's ImageFolder.

    python benchmarks/folders.py cifar10.npz --images 100000
    python benchmarks/folders.py cifar10.npz --images 20000 --side 224

CIFAR-10's images are written as JPEG files, ten classes, as often as it takes; then both read all of them in
shuffled batches, in turn, with the same number of workers. ImageFolder has the usual transforms and a plain
DataLoader. With ``--side 224`` both enlarge each image and cut its middle out. Memory is that of this process
and of the workers, each page counted once (PSS), while one reads for the first and for the second time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mint_compress.data.batching import batches
from mint_compress.data.folders import FolderDataset, image_files
from mint_compress.data.image_reader import usual_workers
from mint_compress.data.specs import IMAGENET

Pass = Callable[[int], Iterable[object]]
"""All batches of one pass, whose number seeds the order."""
BATCH = 256


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("data", type=Path, help="an .npz with x_train and y_train")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--workers", type=int, default=usual_workers())
    parser.add_argument("--passes", type=int, default=5, help="of each")
    return parser.parse_args()


def write(data: Path, count: int, folder: Path) -> None:
    with np.load(data) as arrays:
        images, labels = arrays["x_train"], arrays["y_train"].reshape(-1)
    for label in range(10):
        (folder / str(label)).mkdir()
    for i in range(count):
        row = i % len(images)
        Image.fromarray(images[row]).save(folder / str(labels[row]) / f"{i:07}.jpg", quality=95)


def ours(folder: Path, side: int, workers: int) -> Pass:
    files, _, _ = image_files(folder)
    mean, std = IMAGENET
    dataset = FolderDataset(files, shape=(3, side, side), mean=mean, std=std, workers=workers)
    return lambda seed: batches(dataset, BATCH, generator=torch.Generator().manual_seed(seed))


def plain(folder: Path, side: int, workers: int) -> Pass:
    resized = [] if side == 32 else [v2.Resize(side * 8 // 7), v2.CenterCrop(side)]
    to_floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*resized, *to_floats, v2.Normalize(*IMAGENET)])
    generator = torch.Generator()
    loader = DataLoader(
        ImageFolder(str(folder), transform), BATCH, shuffle=True, num_workers=workers, generator=generator,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def one(seed: int) -> Iterable[object]:
        generator.manual_seed(seed)
        return loader

    return one


def memory() -> float:
    """MiB of this process and its workers."""
    names = ["self", *(str(child.pid) for child in active_children())]
    told = [Path(f"/proc/{name}/smaps_rollup").read_text().split("Pss:", 1)[1] for name in names]
    return sum(int(text.split()[0]) for text in told) / 1024


def timed(one: Pass, seed: int, count: int) -> tuple[float, list[float]]:
    """Images a second, and the memory at each quarter of the pass."""
    total, found = -(-count // BATCH), []
    start, paused = time.perf_counter(), 0.0
    for done, _ in enumerate(one(seed), start=1):
        if done * 4 // total > (done - 1) * 4 // total:
            looked = time.perf_counter()
            found.append(memory())
            paused += time.perf_counter() - looked
    return count / (time.perf_counter() - start - paused), found


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(options.data, options.images, folder)
        rates: dict[str, list[float]] = {}
        memories: dict[str, list[list[float]]] = {}
        made = {"ours": ours, "ImageFolder": plain}
        for of, make in made.items():  # memory: one after the other, each without the other's workers
            one = make(folder, options.side, options.workers)
            memories[of] = [timed(one, seed, options.images)[1] for seed in range(2)]
            del one
        both = {of: make(folder, options.side, options.workers) for of, make in made.items()}
        for seed in range(options.passes + 1):
            for of, one in both.items():
                rates.setdefault(of, []).append(timed(one, seed, options.images)[0])
        del both
    print(f"{options.images:,} files, {options.side} px, {options.workers} workers")
    print("| read by | images a second | MiB at each quarter of the first pass | of the second |")
    print("|---|---|---|---|")
    for of, found in rates.items():
        first, last = memories[of]
        cells = [of, f"{statistics.median(found[1:]):,.0f}"]
        cells += [", ".join(f"{m:.0f}" for m in quarters) for quarters in (first, last)]
        print(f"| {' | '.join(cells)} |")
    ratios = [a / b for a, b in zip(rates["ours"][1:], rates["ImageFolder"][1:], strict=True)]
    print(f"ours / ImageFolder: {statistics.median(ratios):.2f} (of {len(ratios)} pairs of passes in turn: "
          f"{min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
