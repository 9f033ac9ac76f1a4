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
        found = source.gathered(chunks, generator)
        for batch in _one_ahead(found) if source.prefetch else found:
            if len(batch[0]):  # nothing is left where no file of a batch can be read
                yield batch
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        for rows in _chunks(len(source), batch_size, generator):  # type: ignore[arg-type]
            yield understood(collated([source[i] for i in rows.tolist()]))
    elif isinstance(source, IterableDataset):
        yield from map(understood, DataLoader(source, batch_size=batch_size, collate_fn=collated))
    else:
        yield from map(understood, source)


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
