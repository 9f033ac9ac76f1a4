"""Training, validation and test loaders, from a function that the user names or as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from mint_compress.data.splits import SPLIT_SEED, held_out_of
from mint_compress.data.targets import Targets
from mint_compress.errors import MintError, foreign
from mint_compress.importing import import_named
from mint_compress.nn.io import Inputs, InputShape, describe, shape_of, tensors

NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def load_splits(spec: str) -> Any:
    """Call ``package.module:function``, without arguments, and give what it returns.

    Modules in the working directory are found.

    Raises
    ------
    MintError
        No such module or function, or one that raises.
    """
    function = import_named(spec, "the data")
    try:
        with foreign(f"The data function {spec}"):
            return function()
    except SystemExit as error:
        raise MintError(
            f"The data function {spec} called sys.exit({error.code!r}). It must return loaders."
        ) from error


def arranged(made: Any, name: str) -> tuple[dict[str, Source], str]:
    """Loaders, in whatever way they are given, by the names of the splits.

    Parameters
    ----------
    made
        A loader, a dataset, or another iterable of batches, such as a list of them; a tuple of such (train,
        val, test), or a dict under these names; or a LightningDataModule.
    name
        For messages.

    Returns
    -------
    splits
        With exactly the keys train, validation and test. Without test, val is the test split; without
        validation it comes out of train. Where there is train alone, both come out of it; where that cannot
        be split, it serves for all three.
    remark
        What is to be said about that, or nothing.

    Raises
    ------
    MintError
        Something else.
    """
    if hasattr(made, "train_dataloader"):
        made = _of_module(made, name)
    elif is_source(made):
        made = {"train": made}
    elif isinstance(made, tuple | list) and len(made) in (1, 2, 3):
        made = dict(zip(("train", "val", "test"), made, strict=False))
    if not isinstance(made, Mapping) or "train" not in made or set(made) - set(NAMES):
        shown = f"keys {', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
        raise MintError(f"{name} gives {shown}. It must be a loader, or a dict or tuple: train, val, test.")
    splits = {NAMES[key]: source for key, source in made.items()}
    for key, source in splits.items():
        if isinstance(source, Iterator) or not is_source(source):
            raise MintError(
                f"{name}: {key} is a {type(source).__name__}. It must be a DataLoader, a Dataset, or another "
                "iterable of batches that can be gone through again."
            )
    if len(splits) == 1:
        return _all_of(name, splits["train"])
    if "test" not in splits:
        splits["test"] = splits.pop("validation")
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(name, splits["train"])
    return splits, ""


def is_source(made: Any) -> bool:
    """Whether this gives batches, or samples, rather than being one or holding several loaders."""
    if isinstance(made, Dataset):
        return True
    if isinstance(made, list | tuple):
        return len(made) > 0 and _is_batch(made[0])
    return isinstance(made, Iterable) and not isinstance(made, Tensor | str | Mapping)


def _is_batch(made: Any) -> bool:
    if isinstance(made, Tensor | Mapping):
        return True
    if not isinstance(made, list | tuple) or isinstance(made, Dataset):
        return False
    dicts = (
        len(made) == 2 and isinstance(made[1], list | tuple) and all(isinstance(x, Mapping) for x in made[1])
    )
    return dicts or any(isinstance(part, Tensor) for part in made)


def _of_module(module: Any, name: str) -> dict[str, Any]:
    """The loaders of a LightningDataModule, set up as Lightning does it."""
    made: dict[str, Any] = {}
    with foreign(f"The data module {name}"):
        for step, stage in (("prepare_data", ()), ("setup", ("fit",)), ("setup", ("test",))):
            if callable(getattr(module, step, None)):
                getattr(module, step)(*stage)
        for key in ("train", "val", "test"):
            give = getattr(module, f"{key}_dataloader", None)
            # Lightning's own class has all three, and raises in those that were not written
            own = give is not None and "lightning" not in getattr(give, "__module__", "")
            loader = give() if own and give is not None else None
            if loader is not None:
                made[key] = loader
    return made


def _all_of(name: str, train: Source) -> tuple[dict[str, Source], str]:
    """Train, validation and test out of one source."""
    if isinstance(train, list | tuple):  # of batches
        part = held_out_of(len(train))
        if len(train) >= 3:
            kept = train[: -2 * part], train[-2 * part : -part], train[-part:]
            return dict(zip(("train", "validation", "test"), kept, strict=True)), ""
    elif _rows_of(train) is not None:
        rest, test = _hold_out(name, train)
        rest, validation = _hold_out(name, rest)
        return {"train": rest, "validation": validation, "test": test}, ""
    remark = "; one loader that cannot be split: measured on what it was repaired with"
    return dict.fromkeys(("train", "validation", "test"), train), remark


def _rows_of(train: Source) -> int | None:
    """Images that can be split by their numbers, at least three; None where they cannot."""
    dataset = train.dataset if isinstance(train, DataLoader) else train
    sampler = train.sampler if isinstance(train, DataLoader) else None
    known = sampler is None or isinstance(sampler, RandomSampler | SequentialSampler | SubsetRandomSampler)
    whole = isinstance(train, DataLoader) and train.batch_size is None
    if whole or not known or not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
        return None
    count = size(dataset)
    return count if count is not None and count >= 3 else None


def _hold_out(spec: str, train: Source) -> tuple[Source, Source]:
    """Split the validation images off ``train``: the smaller of 5,000 and 10 %."""
    dataset = train.dataset if isinstance(train, DataLoader) else train
    whole = isinstance(train, DataLoader) and train.batch_size is None
    if whole or not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset):
        raise MintError(f"{spec} gives no val besides test, and train cannot be split. Return val too.")
    rows = _rows(spec, train)
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))]
    held_out = held_out_of(len(rows))
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
    """
    count, certain = class_names(source)
    if certain:
        return count
    seen = [torch.arange(count), *(_classes_in(labels) for _, labels in batches(source, 256))]
    return _end(torch.cat(seen))


def _end(numbers: Tensor) -> int:
    return int(numbers.max()) + 1 if numbers.numel() else 0


def _classes_in(labels: Tensor) -> Tensor:
    numbers = class_numbers(labels)
    classes: Tensor = torch.unique(numbers[with_class(numbers)])
    return classes


def first_batch(name: str, source: Source) -> tuple[Inputs, Targets]:
    """What a source gives first.

    Raises
    ------
    MintError
        No batch.
    """
    first: tuple[Inputs, Targets] | None = next(iter(batches(source, 2)), None)
    if first is None:
        raise MintError(f"{name}: the loader gives no batches.")
    return first


def input_shape_of(name: str, inputs: Inputs, wanted: tuple[int, ...] | None) -> InputShape:
    """Shape of one image, or of each input.

    One of several inputs must be floats; the others may be masks or numbers, and go as they are.

    Raises
    ------
    MintError
        Images that are no floats or hold NaN, or another shape than ``wanted``.
    """
    every = tensors(inputs)
    if not any(x.is_floating_point() for x in every):
        kinds = ", ".join(str(x.dtype) for x in every)
        raise MintError(f"{name}: the loader gives {kinds} images. Give normalised float32 tensors.")
    if not all(torch.isfinite(x).all() for x in every):
        raise MintError(f"{name}: the loader gives images with NaN or infinite values. Remove them.")
    shape = shape_of(inputs)
    if wanted is not None and shape != wanted:
        has, wants = describe(shape), describe(wanted)
        raise MintError(f"{name}: the loader gives images of {has}, but the network takes {wants}.")
    return shape
