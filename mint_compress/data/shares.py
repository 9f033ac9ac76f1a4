"""What one of several processes takes of each batch of a loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader, IterableDataset

from mint_compress.data.targets import Targets, select_targets
from mint_compress.nn.io import Inputs, count, select
from mint_compress.processes import Share


def can_be_shared(source: Any) -> TypeGuard[DataLoader[Any]]:
    """Whether this is a plain DataLoader that makes its batches of numbered samples."""
    return (
        type(source) is DataLoader
        and not isinstance(source.dataset, IterableDataset)
        and source.batch_sampler is not None
    )


def shared_loader(loader: DataLoader[Any], share: Share) -> DataLoader[Any]:
    """The same batches, of which a share is read and the rest is not.

    accelerate's prepared loaders do this too, but fill up or leave out what does not divide evenly.
    """
    return DataLoader(
        loader.dataset,
        batch_sampler=_Part(loader.batch_sampler, share),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


class _Part:
    """Batches of a sampler's, of which a share is left."""

    def __init__(self, batches: Iterable[list[int]], share: Share) -> None:
        self.batches, self.share = batches, share

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            mine = [batch[row] for row in self.share.of(len(batch))]
            if mine:
                yield mine


def share_of_each(
    batches: Iterable[tuple[Inputs, Targets]], share: Share | None
) -> Iterator[tuple[Inputs, Targets]]:
    """The share of batches that have been read; everything if it is None."""
    for inputs, targets in batches:
        if share is None:
            yield inputs, targets
            continue
        rows = torch.tensor(share.of(count(inputs)), dtype=torch.int64)
        if len(rows):
            yield select(inputs, rows), select_targets(targets, rows)
