"""How many images a source gives, and how many classes its data sets name."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset

from mint_compress.data.batch_kinds import understood
from mint_compress.data.datasets import Source
from mint_compress.errors import foreign
from mint_compress.nn.io import count


def size(source: Source) -> int | None:
    """Images that one pass over a source gives, each counted once; None when it does not say.

    A dataset has as many as its own length says, whatever it wraps. A loader has those of its dataset, or
    fewer where its sampler is shorter or ``drop_last`` leaves out the end. A list of batches is counted;
    other iterables have a number of batches at most.

    Raises
    ------
    ForeignError
        The length of a dataset or a sampler raises.
    """
    if isinstance(source, DataLoader):
        return _loader_size(source)
    if isinstance(source, list | tuple):
        return sum(count(understood(batch)[0]) for batch in source)
    return _length(source) if isinstance(source, Dataset) else None


def _loader_size(loader: DataLoader[Any]) -> int | None:
    images = _length(loader.dataset)
    if isinstance(loader.dataset, IterableDataset):
        # what PyTorch lets stand here is a sampler without end
        drawn, batch_size, drop_last = images, loader.batch_size, loader.drop_last
    elif type(loader.batch_sampler) is BatchSampler:
        sampler = loader.batch_sampler
        drawn, batch_size, drop_last = _length(sampler.sampler), sampler.batch_size, sampler.drop_last
    else:
        # a dataset that gives whole batches, or a sampler of batches of any size
        return None
    if drawn is None or batch_size is None:
        return None
    if drop_last:
        drawn -= drawn % batch_size
    # a sampler that draws with replacement may be longer than there are images
    return drawn if images is None else min(images, drawn)


def _length(sized: object) -> int | None:
    if not isinstance(sized, Sized):
        return None
    with foreign(f"len() of the {type(sized).__name__}"):
        try:
            return len(sized)
        except (TypeError, NotImplementedError):  # how PyTorch says that there is none
            return None


def class_names(source: Source) -> tuple[int, bool]:
    """How many classes the nearest dataset with ``classes`` names, and whether its labels arrive as they are.

    Parameters
    ----------
    source
        A dataset, a loader, or whatever wraps one and calls it ``dataset``.

    Returns
    -------
    count
        0 where nothing has names.
    certain
        False where there are no names, and where something between here and the names may change the
        labels: anything but PyTorch's own loader and ``Subset``.
    """
    certain = True
    while not isinstance(getattr(source, "classes", None), Sized):
        inner = getattr(source, "dataset", None)
        if inner is None or inner is source:
            return 0, False
        certain = certain and type(source) in (DataLoader, Subset)
        source = inner
    return len(source.classes), certain  # type: ignore[union-attr]
