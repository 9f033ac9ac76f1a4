"""Training, validation and test loaders from a function that the user names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from mint_compress.data.batching import batches
from mint_compress.data.counting import class_names, size
from mint_compress.data.datasets import Source
from mint_compress.data.label_maps import class_numbers, with_class
from mint_compress.data.splits import SPLIT_SEED
from mint_compress.errors import ForeignError, MintError
from mint_compress.nn.io import Inputs, InputShape, describe, shape_of, tensors

NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def load_splits(spec: str) -> dict[str, Source]:
    """Call ``package.module:function`` and give its loaders by name.

    Parameters
    ----------
    spec
        The function is called without arguments and returns a dict (train, val, test) or a tuple in
        that order, of DataLoaders, datasets or other iterables of (inputs, labels), where inputs is a
        tensor, or a tuple or dict of tensors. Modules in the working directory are found.

    Returns
    -------
    dict
        With exactly the keys train, validation and test. Without test, val is the test split;
        without validation it comes out of train, which must be over a map-style dataset then.

    Raises
    ------
    MintError
        No such module or function, one that raises, or one that returns something else.
    """
    made = _call(spec)
    if isinstance(made, (tuple, list)) and len(made) in (2, 3):
        made = dict(zip(("train", "val", "test"), made, strict=False))
    if not isinstance(made, Mapping) or "train" not in made or len(made) < 2 or set(made) - set(NAMES):
        shown = f"keys {', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
        raise MintError(
            f"{spec} returned {shown}. It must return a dict or tuple of loaders: train, val, test."
        )
    splits = {NAMES[key]: source for key, source in made.items()}
    for key, source in splits.items():
        if isinstance(source, Iterator) or not isinstance(source, (Dataset, Iterable)):
            raise MintError(
                f"{spec}: {key} is a {type(source).__name__}. It must be a DataLoader or a Dataset."
            )
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(spec, splits["train"])
    return splits


def _call(spec: str) -> Any:
    module_name, _, function_name = spec.partition(":")
    with _working_directory_importable():
        try:  # the user's module and function, and nothing else
            function = importlib.import_module(module_name)
            for part in function_name.split("."):
                function = getattr(function, part)
            return function()  # type: ignore[operator]
        except MintError:
            raise
        except ModuleNotFoundError as error:
            raise MintError(f"Cannot import {module_name!r} for the data {spec!r}: {error}.") from error
        except SystemExit as error:
            raise MintError(
                f"The data function {spec} called sys.exit({error.code!r}). It must return loaders."
            ) from error
        except Exception as error:  # whatever they raise
            reason = " ".join(str(error).split())
            raise ForeignError(
                f"The data function {spec} failed: {type(error).__name__}: {reason}"
            ) from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _hold_out(spec: str, train: Source) -> tuple[Source, Source]:
    """Split the validation images off ``train``: the smaller of 5,000 and 10 %."""
    dataset = train.dataset if isinstance(train, DataLoader) else train
    whole = isinstance(train, DataLoader) and train.batch_size is None
    if whole or not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
        raise MintError(f"{spec} gives no val besides test, and train cannot be split. Return val too.")
    rows = _rows(spec, train)
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))]
    held_out = max(1, min(5000, len(rows) // 10))
    parts = [Subset(dataset, order[part].tolist()) for part in (slice(held_out, None), slice(held_out))]
    if not isinstance(train, DataLoader):
        return parts[0], parts[1]
    loaders = [
        DataLoader(
            part,
            batch_size=train.batch_size,
            shuffle=shuffle and not isinstance(train.sampler, SequentialSampler),
            num_workers=train.num_workers,
            collate_fn=train.collate_fn,
            pin_memory=train.pin_memory,
            drop_last=shuffle and train.drop_last,
        )
        for part, shuffle in zip(parts, (True, False), strict=True)
    ]
    return loaders[0], loaders[1]


def _rows(spec: str, train: Source) -> Tensor:
    """The images of its dataset that ``train`` gives, by number: a sampler may leave some out for good."""
    sampler = train.sampler if isinstance(train, DataLoader) else None
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(sampler.indices)
    if sampler is not None and not isinstance(sampler, RandomSampler | SequentialSampler):
        raise MintError(
            f"{spec} gives no val besides test, and the {type(sampler).__name__} of train decides by itself "
            "which images it gives. Return val too."
        )
    count = size(train.dataset if isinstance(train, DataLoader) else train)
    if count is None:
        raise MintError(f"{spec} gives no val besides test, and train has no length. Return val too.")
    if count < 2:
        raise MintError(f"{spec} gives no val besides test, and train is too small to split. Return val too.")
    return torch.arange(count)


def class_count(source: Source) -> int:
    """Number of classes: what the nearest dataset with ``classes`` says, or its labels where they say more.

    The labels are gone through once where there are no names, or where a wrapper of the user's, which may
    change the labels, stands around the dataset with the names.

    Pixels of label maps that are 255 or -100 belong to none.

    Raises
    ------
    MintError
        One class only.
    """
    count, certain = class_names(source)
    seen = torch.arange(count)
    if not certain:
        seen = torch.unique(torch.cat([seen, *(_classes_in(labels) for _, labels in batches(source, 256))]))
        count = int(seen[-1]) + 1 if len(seen) else 0
    if len(seen) < 2:
        raise MintError("The loaders give one class only. Two or more are needed.")
    return count


def _classes_in(labels: Tensor) -> Tensor:
    numbers = class_numbers(labels)
    classes: Tensor = torch.unique(numbers[with_class(numbers)])
    return classes


def first_shape(spec: str, source: Source, input_shape: tuple[int, ...] | None) -> InputShape:
    """Shape of one image, or of each input, after looking at the first batch.

    One of several inputs must be floats; the others may be masks or numbers, and go as they are.

    Raises
    ------
    MintError
        No batch, images that are no floats or hold NaN, labels that are no integers from 0, another
        shape than ``input_shape``.
    """
    first: tuple[Inputs, Tensor] | None = next(iter(batches(source, 2)), None)
    if first is None:
        raise MintError(f"{spec}: the loader gives no batches.")
    images, labels = first
    every = tensors(images)
    if not any(x.is_floating_point() for x in every):
        kinds = ", ".join(str(x.dtype) for x in every)
        raise MintError(f"{spec}: the loader gives {kinds} images. Give normalised float32 tensors.")
    if not all(torch.isfinite(x).all() for x in every):
        raise MintError(f"{spec}: the loader gives images with NaN or infinite values. Remove them.")
    if labels.is_floating_point() or labels.dtype == torch.bool or bool((_classes_in(labels) < 0).any()):
        raise MintError(f"{spec}: the loader gives {labels.dtype} labels. Labels are integers from 0.")
    shape = shape_of(images)
    if input_shape is not None and shape != input_shape:
        has, wants = describe(shape), describe(input_shape)
        raise MintError(f"{spec}: the loader gives images of {has}, but the network takes {wants}.")
    return shape
