"""Any source of images as batches of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from mint_compress.data.datasets import ImageDataset, Source
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, of_batch, tensors


def batches(
    source: Source, batch_size: int, *, generator: torch.Generator | None = None
) -> Iterator[tuple[Inputs, Tensor]]:
    """Go once through ``source`` and yield (images, labels), the last batch perhaps smaller.

    Parameters
    ----------
    source
        A dataset of (image, label), or an iterable that yields (images, labels) batches, whose own
        order and batch size then hold.
    batch_size
        Images per batch of a dataset.
    generator
        Given, a dataset comes in shuffled order and its augmentation draws from here too.

    Raises
    ------
    MintError
        When an iterable yields something else than pairs of inputs and labels, one label a sample.
    """
    if isinstance(source, ImageDataset):
        chunks = _chunks(len(source), batch_size, generator)
        yield from _fetched(lambda rows: source.gather(rows, generator), chunks, ahead=source.prefetch)
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        for rows in _chunks(len(source), batch_size, generator):  # type: ignore[arg-type]
            yield _pair(_collate([source[i] for i in rows.tolist()]))
    elif isinstance(source, IterableDataset):
        yield from map(_pair, DataLoader(source, batch_size=batch_size))
    else:
        yield from map(_pair, source)


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
    fetch: Callable[[Tensor], tuple[Tensor, Tensor]], chunks: Sequence[Tensor], *, ahead: bool
) -> Iterator[tuple[Tensor, Tensor]]:
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


def _collate(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:  # PyTorch's, at items of other types or unequal shapes
        reason = " ".join(str(error).split())
        raise MintError(f"The dataset's items do not make a batch ({reason}). Give (tensor, int).") from None


def _pair(batch: Any) -> tuple[Inputs, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        inputs, labels = of_batch(batch), batch[1]
        if _are_tensors(inputs):
            _check_counts(*tensors(inputs), labels)
            return inputs, labels
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    shown = type(batch).__name__ + size
    raise MintError(
        f"The loader gives a {shown} per batch. It must give (inputs, labels), two tensors; "
        "several inputs are a tuple or a dict of tensors."
    )


def _are_tensors(inputs: Any) -> bool:
    values = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    if isinstance(values, tuple):
        return len(values) > 0 and all(isinstance(x, Tensor) for x in values)
    return isinstance(values, Tensor)


def _check_counts(*together: Tensor) -> None:
    if len({x.shape[:1] for x in together}) > 1 or not together[0].ndim:
        shapes = ", ".join(str(tuple(x.shape)) for x in together)
        raise MintError(
            f"The loader gives inputs and labels of shapes {shapes} in one batch. "
            "Each must have as many samples as the others, along its first dimension."
        )
