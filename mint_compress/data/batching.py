"""Any source of images as batches of inputs and targets."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mint_compress.data.batch_kinds import collated, understood
from mint_compress.data.datasets import Batches, ImageDataset, Source
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
        The source is neither, a batch is something else, or its parts have other numbers of samples.
    """
    _check(source)
    if isinstance(source, ImageDataset):
        chunks = _chunks(len(source), batch_size, generator)
        if share is not None:
            chunks = [rows for rows in chunks if share.of(len(rows))]
        found = source.gathered(chunks, generator, share)
        for batch in _one_ahead(found) if source.prefetch else found:
            if len(batch[0]):
                yield batch
            elif share is not None:  # the others would wait for it
                raise MintError("No image of a process's share of a batch can be read. Remove those files.")
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
    _check(source)
    try:
        size = len(source)  # type: ignore[arg-type]
    except TypeError:  # of an iterable without __len__, and of PyTorch's IterableDataset
        raise MintError("The loader has no length (len() fails). Give a DataLoader over a dataset.") from None
    return -(-size // batch_size) if isinstance(source, Dataset) else size


def _check(source: Source) -> None:
    if not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise MintError(
            f"Batches come from a dataset or an iterable of batches, and {type(source).__name__} is neither. "
            "Of a Data, give one split: data.train, data.validation or data.test."
        )


def _chunks(count: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return [order[start : start + size] for start in range(0, count, size)]


def _one_ahead(found: Batches) -> Batches:
    """The same, each fetched while the one before it is worked on."""
    wanted: SimpleQueue[bool] = SimpleQueue()
    fetched: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def fetch() -> None:
        while wanted.get():
            try:
                fetched.put((next(found, None), None))
            except BaseException as error:  # to be raised where it is waited for
                fetched.put((None, error))

    # One thread, so that what augmentation draws stays in the order of the batches. It may fork workers,
    # which at their end would wait for the thread of an executor, themselves, and fail.
    thread = Thread(target=fetch, daemon=True)
    thread.start()
    try:
        wanted.put(True)
        while True:
            batch, error = fetched.get()
            if error is not None:
                raise error
            if batch is None:
                return
            wanted.put(True)
            yield batch
    finally:
        wanted.put(False)
        thread.join()
        found.close()
