"""Any source of images as batches of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mint_compress.data.augmentation import Augmented
from mint_compress.data.batch_kinds import collated, understood
from mint_compress.data.datasets import ImageDataset, Source
from mint_compress.data.shares import can_be_shared, share_of_each, shared_loader
from mint_compress.data.targets import Targets
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs
from mint_compress.processes import Share


def batches(
    source: Source,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Iterator[tuple[Inputs, Targets]]:
    """Go once through ``source`` and yield (inputs, targets), the last batch perhaps smaller.

    Parameters
    ----------
    source
        A dataset of images, alone or with targets, or an iterable of batches, whose own order and batch size
        then hold; see :func:`mint_compress.data.batch_kinds.understood`.
    batch_size
        Images per batch of a dataset.
    generator
        Given, a dataset comes in shuffled order and its augmentation draws from here too.
    share
        What is taken of each batch; batches of which nothing is are passed over. The rest is not even read
        where the source can be asked for some samples: a dataset, or a plain DataLoader over one.

    Raises
    ------
    MintError
        A batch is something else, or its parts have other numbers of samples.
    """
    if isinstance(source, ImageDataset):
        chunks = _chunks(len(source), batch_size, generator)
        if share is not None:
            chunks = [rows for rows in chunks if share.of(len(rows))]
        fetch = partial(_gathered, source, generator, share)
        yield from _fetched(fetch, chunks, ahead=source.prefetch)
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        for rows in _chunks(len(source), batch_size, generator):  # type: ignore[arg-type]
            if share is not None:
                rows = rows[list(share.of(len(rows)))]
            if len(rows) == 0:
                continue
            yield understood(collated([source[i] for i in rows.tolist()]))
    elif isinstance(source, IterableDataset):
        loader = DataLoader(source, batch_size=batch_size, collate_fn=collated)
        yield from share_of_each(map(understood, loader), share)
    elif share is not None and can_be_shared(source):
        yield from map(understood, shared_loader(source, share))
    else:
        yield from share_of_each(map(understood, source), share)


def generators_of(source: Source) -> list[torch.Generator]:
    """What the shuffling of a DataLoader draws from, where that is not PyTorch's own generator."""
    owners = source, getattr(source, "sampler", None)
    found = [getattr(owner, "generator", None) for owner in owners]
    return [one for one in found if isinstance(one, torch.Generator)]


def batch_count(source: Source, batch_size: int) -> int:
    """How many batches `batches` yields for ``source``.

    Raises
    ------
    MintError
        When an iterable has no length.
    """
    try:
        size = len(source)  # type: ignore[arg-type]
    except TypeError:  # of an iterable without __len__, and of PyTorch's IterableDataset
        raise MintError("The loader has no length (len() fails). Give a DataLoader over a dataset.") from None
    return -(-size // batch_size) if isinstance(source, Dataset) else size


def _chunks(count: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return [order[start : start + size] for start in range(0, count, size)]


def _gathered(
    source: ImageDataset, generator: torch.Generator | None, share: Share | None, rows: Tensor
) -> tuple[Tensor, Tensor | None]:
    """A share of the images, augmented as they are when one process takes all."""
    if share is None:
        return source.gather(rows, generator)
    mine = list(share.of(len(rows)))
    if isinstance(source, Augmented):
        return source.gather(rows, generator, mine)
    before = None if generator is None else generator.get_state()
    part = source.gather(rows[mine], generator)
    if generator is None or before is None or torch.equal(before, generator.get_state()):
        return part
    generator.set_state(before)  # it augments in a way of its own, which goes by the whole batch
    images, targets = source.gather(rows, generator)
    return images[mine], None if targets is None else targets[mine]


def _fetched(
    fetch: Callable[[Tensor], tuple[Tensor, Tensor | None]], chunks: Sequence[Tensor], *, ahead: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if not ahead:
        yield from map(fetch, chunks)
        return
    # one worker, so that what augmentation draws stays in the order of the batches
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for chunk in chunks:
            ready, waiting = waiting, pool.submit(fetch, chunk)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()
