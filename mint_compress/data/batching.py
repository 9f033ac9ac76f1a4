"""Any source of images as batches of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mint_compress.data.batch_kinds import collated, understood
from mint_compress.data.datasets import ImageDataset, Source
from mint_compress.data.targets import Targets
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs


def batches(
    source: Source, batch_size: int, *, generator: torch.Generator | None = None
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

    Raises
    ------
    MintError
        A batch is something else, or its parts have other numbers of samples.
    """
    if isinstance(source, ImageDataset):
        chunks = _chunks(len(source), batch_size, generator)
        yield from _fetched(lambda rows: source.gather(rows, generator), chunks, ahead=source.prefetch)
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        for rows in _chunks(len(source), batch_size, generator):  # type: ignore[arg-type]
            yield understood(collated([source[i] for i in rows.tolist()]))
    elif isinstance(source, IterableDataset):
        yield from map(understood, DataLoader(source, batch_size=batch_size, collate_fn=collated))
    else:
        yield from map(understood, source)


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
