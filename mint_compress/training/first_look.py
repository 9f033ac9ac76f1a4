"""A look at the data before anything is computed: what is the network for, and do the targets fit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from mint_compress.data.batching import batches, generators_of
from mint_compress.data.datasets import ImageDataset, Source, are_classes
from mint_compress.data.targets import Targets, select_targets, targets_to
from mint_compress.errors import MintError
from mint_compress.nn.contexts import evaluating, placed, seeded
from mint_compress.nn.io import Inputs, run, select, to
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.finding import default_task
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.protocol import Task

LOOKED_AT = 16
"""Samples of a dataset; of a loader it is one batch."""
RUN = 2
"""Of those, samples whose outputs are computed."""


def settle_task(
    model: nn.Module,
    sources: Mapping[str, Source],
    *,
    task: Task | None = None,
    device: torch.device,
) -> tuple[Task, tuple[str, ...]]:
    """Find out what the network is for, and hold a batch of every source against its outputs.

    Parameters
    ----------
    model
        Run in eval mode on two samples of each source; left as it was, as are the orders in which
        loaders shuffle.
    sources
        By a name for messages, ``the test data``. Empty ones, and iterators that could be gone through
        once only, are passed over. Targets that are known without looking at images are all checked.
    task
        The one that was asked for; None: the one that outputs and targets speak for, see
        :func:`mint_compress.training.tasks.finding.default_task`.
    device
        Where to compute.

    Returns
    -------
    task, notes
        The task, which knows now which output counts; lines that say how outputs and targets are taken.

    Raises
    ------
    MintError
        The targets do not fit the outputs.
    """
    notes: dict[str, None] = {}
    settled: Task | None = None
    with evaluating(model), placed(model, device), torch.no_grad():
        for whose, source in sources.items():
            first = _first_batch(source, device)
            if first is None:
                continue
            inputs, targets = first
            with seeded(0, device):
                outputs = run(model, to(select(inputs, slice(RUN)), device))
            some = targets_to(select_targets(targets, slice(RUN)), device)
            known = _known_targets(source)
            every = targets if known is None else known
            if settled is None:
                settled, why = (task, "") if task is not None else default_task(outputs, every)
                settled = settled.settled(outputs, every, asked=task is not None)
                reason = f" ({why})" if why else ""
                notes[f"task: {settled.name}, by {settled.metric.name}{reason}"] = None
            notes |= dict.fromkeys(settled.check(outputs, some, whose, every))
    return settled or task or Imitation(), tuple(notes)


def check_classes(task: Task, train: Source) -> None:
    """Refuse to train a classifier on one class.

    Raises
    ------
    MintError
        All labels are the same, as far as they are known without looking at images.
    """
    labels = _known_targets(train)
    if not isinstance(task, Classification) or not are_classes(labels):
        return
    if len(labels) < 2 or len(labels.unique()) > 1:
        return
    raise MintError(
        f"The training data has one class only (label {int(labels[0])}), and fine-tuning would teach nothing "
        "else. Give more classes, or --epochs 0, or --task imitation, which needs no labels."
    )


def _first_batch(source: Source, device: torch.device) -> tuple[Inputs, Targets] | None:
    if isinstance(source, Iterator):
        return None
    with seeded(0, device), _generators_kept(source):
        found = batches(source, LOOKED_AT, generator=torch.Generator().manual_seed(0))
        return next(islice(found, 1), None)


@contextmanager
def _generators_kept(source: Source) -> Iterator[None]:
    """Put back what the shuffling of a DataLoader draws from: a look must not change its order."""
    states = [(g, g.get_state()) for g in generators_of(source)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _known_targets(source: Source) -> Tensor | None:
    """All targets of a source that holds them as one tensor."""
    if isinstance(source, DataLoader) and source.collate_fn is default_collate:
        source = source.dataset
    if isinstance(source, ImageDataset):
        return source.labels
    return source.tensors[1] if isinstance(source, TensorDataset) and len(source.tensors) == 2 else None
