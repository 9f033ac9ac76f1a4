"""Which images are held out, and which are drawn: stratified splits and class-balanced draws."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mint_compress.data.batching import batches
from mint_compress.data.datasets import Source
from mint_compress.data.targets import Targets, concatenate_targets, select_targets
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, concatenate, describe, select, shape_of
from mint_compress.nn.io import count as number_of

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


def random_split(count: int, held_out: int, *, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Split the numbers below ``count`` into (kept, held out), each sorted, at random."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


def held_out_of(count: int) -> int:
    """Images that are held out for validation or test where nobody said how many."""
    return max(1, min(5000, count // 10))


def draw_from_batches(
    source: Source, classes: int | None, count: int, *, seed: int
) -> tuple[Inputs, Targets]:
    """One pass over a source whose labels are not known beforehand, ended as soon as there is enough."""
    quota = None if classes is None else -(-count // classes)
    taken: Counter[int] = Counter()
    chosen: list[tuple[Inputs, Targets]] = []
    spare: list[tuple[Inputs, Targets]] = []
    for inputs, targets in batches(source, 256, generator=torch.Generator().manual_seed(seed)):
        for row in range(number_of(inputs)):
            # a copy: a view would keep the whole batch
            one = torch.tensor([row])
            sample = select(inputs, one), select_targets(targets, one)
            label = _class_of(sample[1])
            if quota is None or label is None or taken[label] < quota:
                if label is not None:
                    taken[label] += 1
                chosen.append(sample)
            elif len(spare) < count:
                spare.append(sample)
        if len(chosen) >= count:
            break
    chosen = (chosen + spare)[:count]
    if not chosen:
        raise MintError("The training loader gives no images to calibrate on.")
    return _concatenated([x for x, _ in chosen]), concatenate_targets([target for _, target in chosen])


def _class_of(target: Targets) -> int | None:
    """Of one sample; a label map (segmentation) is no class, and such images are taken as they come."""
    return int(target) if isinstance(target, Tensor) and target.ndim == 1 else None


def _concatenated(parts: list[Inputs]) -> Inputs:
    shapes = {describe(shape_of(part)) for part in parts}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise MintError(
            f"The training loader gives samples of {first} and of {second}. Resize or pad them to one size."
        )
    return concatenate(parts)
