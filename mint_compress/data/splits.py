"""Which images are held out, and which are drawn: stratified splits and class-balanced draws."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mint_compress.data.batching import batches
from mint_compress.data.datasets import Source
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, concatenate, select

# splits are the same whatever the seed: a second run must not train on what a first one held out
SPLIT_SEED = 0


def stratified_split(labels: Tensor, held_out: int, *, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Split indices into (kept, held out), each sorted, with every class's share held out alike.

    Parameters
    ----------
    labels
        (n,) int64.
    held_out
        Exactly so many indices are held out; the largest remainders decide who gives one more.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, sizes = torch.unique(labels, return_counts=True)
    quotas = sizes * held_out // len(labels)
    remainders = (sizes * held_out % len(labels)).argsort(descending=True, stable=True)
    quotas[remainders[: held_out - int(quotas.sum())]] += 1
    out = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in zip(classes.tolist(), quotas.tolist(), strict=True):
        rows = (labels == label).nonzero().flatten()
        out[rows[torch.randperm(len(rows), generator=generator)[:quota]]] = True
    return (~out).nonzero().flatten(), out.nonzero().flatten()


def balanced_draw(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Indices of ``count`` rows, as many of each class as possible, without replacement, shuffled.

    ``labels`` is (n,) int64; at most n indices come back.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty_like(order)
    # how many of its own class stand before each row in the random order: taking the lowest ranks
    # takes every class in turn, and goes on with the others where one is used up
    for label in torch.unique(labels):
        rows = (labels[order] == label).nonzero().flatten()
        rank[rows] = torch.arange(len(rows))
    chosen = order[rank.argsort(stable=True)[:count]]
    return chosen[torch.randperm(len(chosen), generator=generator)]


def draw_from_batches(source: Source, classes: int, count: int, *, seed: int) -> tuple[Inputs, Tensor]:
    """One pass over a source whose labels are not known beforehand, ended as soon as there is enough."""
    quota = -(-count // classes)
    taken: Counter[int] = Counter()
    chosen: list[tuple[Inputs, Tensor]] = []
    spare: list[tuple[Inputs, Tensor]] = []
    for images, labels in batches(source, 256, generator=torch.Generator().manual_seed(seed)):
        for row, label in enumerate(labels):
            # a copy: a view would keep the whole batch
            image = select(images, torch.tensor([row]))
            # a label map (segmentation) is no class; such images are taken as they come
            key = int(label) if label.ndim == 0 else -1
            if key < 0 or taken[key] < quota:
                taken[key] += 1
                chosen.append((image, label))
            elif len(spare) < count:
                spare.append((image, label))
        if len(chosen) >= count:
            break
    chosen = (chosen + spare)[:count]
    if not chosen:
        raise MintError("The training loader gives no images to calibrate on.")
    return concatenate([image for image, _ in chosen]), torch.stack([label for _, label in chosen])
