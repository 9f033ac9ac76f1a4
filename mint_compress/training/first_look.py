"""A look at the data before anything is computed with them: do the labels fit the network's outputs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from mint_compress.data.datasets import ImageDataset, Source, batches
from mint_compress.nn.contexts import evaluating, placed, seeded
from mint_compress.nn.io import Inputs, first_tensor, run, select, to
from mint_compress.training.targets import fitted, reading, within

LOOKED_AT = 16
"""Samples of a dataset; of a loader it is one batch."""
RUN = 2
"""Of those, samples whose outputs are computed."""


def check_labels(model: nn.Module, sources: Mapping[str, Source], device: torch.device) -> tuple[str, ...]:
    """Compare one batch of every source, and all labels that are known without it, with the outputs.

    Parameters
    ----------
    model
        Run in eval mode on two samples of each source; left as it was, as are the orders in which
        loaders shuffle.
    sources
        By a name for messages, ``the test data``. Empty ones, and iterators that could be gone through
        once only, are passed over.
    device
        Where to compute.

    Returns
    -------
    tuple of str
        Lines that say how outputs and labels are taken where that is not plain.

    Raises
    ------
    MintError
        The labels do not fit; see :func:`mint_compress.training.targets.fitted`.
    """
    notes: dict[str, None] = {}
    with evaluating(model), placed(model, device), torch.no_grad():
        for whose, source in sources.items():
            first = _first_batch(source, device)
            if first is None:
                continue
            images, labels = first
            with seeded(0, device):
                outputs = first_tensor(run(model, to(select(images, slice(RUN)), device)))
            fitted(labels[:RUN], outputs, whose)
            known = _known_labels(source)
            within(labels if known is None else known, outputs, whose)
            notes |= dict.fromkeys(reading(labels, outputs))
    return tuple(notes)


def _first_batch(source: Source, device: torch.device) -> tuple[Inputs, Tensor] | None:
    if isinstance(source, Iterator):
        return None
    with seeded(0, device), _generators_kept(source):
        found = batches(source, LOOKED_AT, generator=torch.Generator().manual_seed(0))
        return next(islice(found, 1), None)


@contextmanager
def _generators_kept(source: Source) -> Iterator[None]:
    """Put back what the shuffling of a DataLoader draws from: a look must not change its order."""
    owners = source, getattr(source, "sampler", None)
    drawn_from = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in drawn_from if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _known_labels(source: Source) -> Tensor | None:
    """All labels of a source that holds them as one tensor."""
    if isinstance(source, DataLoader) and source.collate_fn is default_collate:
        source = source.dataset
    if isinstance(source, ImageDataset):
        return source.labels
    return source.tensors[1] if isinstance(source, TensorDataset) and len(source.tensors) == 2 else None
