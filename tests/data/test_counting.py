"""How many images and classes a source has: against what one pass over it gives."""

# mypy: disable-error-code="arg-type,no-untyped-call,no-untyped-def,type-arg"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mint_compress.data.augmentation import Augmented
from mint_compress.data.batching import batches
from mint_compress.data.counting import size
from mint_compress.data.datasets import ArrayDataset
from mint_compress.data.loaders import class_count
from mint_compress.errors import ForeignError


def made(count: int = 20, classes: int = 4) -> TensorDataset:
    return TensorDataset(torch.arange(count).float().view(count, 1), torch.arange(count) % classes)


class Named(TensorDataset):
    classes = ("ant", "bee", "cat", "dog", "eel")


def named(count: int = 20, classes: int = 4) -> Named:
    return Named(torch.zeros(count, 2), torch.arange(count) % classes)


class Every(Dataset):
    """A user's wrapper: every so manieth item, the label changed."""

    def __init__(self, dataset: Any, step: int = 1, offset: int = 0) -> None:
        self.dataset, self.step, self.offset = dataset, step, offset

    def __len__(self) -> int:
        return len(self.dataset) // self.step

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.dataset[index * self.step]
        return x, y + self.offset


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(torch.zeros(2), i % 2) for i in range(self.count)])


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.count


class Prefetched:
    """A user's wrapper of a loader, no loader itself."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)


IMAGES = ArrayDataset(torch.zeros(20, 3, 4, 4), torch.arange(20) % 4)
SOURCES = {
    "dataset": (made(), 20),
    "subset": (Subset(made(), [3, 1, 4]), 3),
    "subset of a subset": (Subset(Subset(made(), list(range(9))), [2, 8]), 2),
    "random_split": (torch.utils.data.random_split(made(), [17, 3])[1], 3),
    "concatenation": (ConcatDataset([made(20), Subset(made(), [0, 1])]), 22),
    "wrapper": (Every(made(), step=3), 6),
    "augmented": (Augmented(IMAGES.subset(torch.arange(7)), padding=1), 7),
    "loader": (DataLoader(made(), 8), 20),
    "loader of a subset": (DataLoader(Subset(made(), [3, 1, 4]), 2), 3),
    "loader of a wrapper": (DataLoader(Every(made(), step=3), 4, shuffle=True), 6),
    "drop_last": (DataLoader(made(), 8, drop_last=True), 16),
    "drop_last of everything": (DataLoader(made(), 32, drop_last=True), 0),
    "SubsetRandomSampler": (DataLoader(made(), 4, sampler=SubsetRandomSampler([1, 5, 6])), 3),
    "short RandomSampler": (DataLoader(made(), 4, sampler=RandomSampler(made(), num_samples=6)), 6),
    "short and drop_last": (DataLoader(made(), 4, sampler=SubsetRandomSampler(range(7)), drop_last=True), 4),
    "BatchSampler": (DataLoader(made(), batch_sampler=BatchSampler(range(20), 6, drop_last=True)), 18),
    "loader of a list": (DataLoader([(torch.zeros(2), 0)] * 5, 2), 5),
    "list": ([(torch.zeros(2, 2), torch.tensor([0, 1])), (torch.zeros(1, 2), torch.tensor([1]))], 3),
    "stream that says": (SizedStream(9), 9),
    "loader of a stream": (DataLoader(SizedStream(9), 4, drop_last=True), 8),
}


@pytest.mark.parametrize("case", SOURCES)
def test_size_is_what_one_pass_gives(case: str) -> None:
    source, count = SOURCES[case]
    assert size(source) == count
    assert sum(len(labels) for _, labels in batches(source, 7)) == count


def test_what_is_drawn_again_is_one_image_all_the_same() -> None:
    sampler = WeightedRandomSampler([1.0] * 20, num_samples=500)
    assert size(DataLoader(made(), 10, sampler=sampler)) == 20


@pytest.mark.parametrize(
    "source",
    [
        Stream(5),
        DataLoader(Stream(5), 2),
        # each item is a batch of unknown size
        DataLoader(made(), batch_size=None),
        DataLoader(made(), batch_sampler=[[0, 1, 2], [3]]),
        # has a ``dataset``, which says nothing about what it gives
        Prefetched(DataLoader(made(), 4)),
    ],
)
def test_a_source_that_does_not_say_has_no_size(source: Any) -> None:
    assert size(source) is None


def test_a_length_that_raises_is_the_users() -> None:
    class Broken(Every):
        def __len__(self) -> int:
            raise KeyError("index.json")

    with pytest.raises(ForeignError, match=r"len\(\) of the Broken failed: KeyError: 'index.json'"):
        size(Broken(made()))


class Unreadable(Named):
    def __getitem__(self, index: int) -> Any:
        raise AssertionError("the names say it all")


def test_names_are_believed_where_labels_arrive_as_they_are() -> None:
    images = Unreadable(torch.zeros(4, 2))
    for source in (images, Subset(images, [0]), DataLoader(images), DataLoader(Subset(images, [0]), 2)):
        assert class_count(source) == 5


def test_a_selection_of_classes_keeps_the_names_and_more_labels_than_names_count() -> None:
    # labels 0 and 2 only: the network may have all five outputs
    assert class_count(Every(named(), step=2)) == 5
    assert class_count(DataLoader(Every(named()), 4)) == 5
    # labels 4 to 7
    assert class_count(Every(named(), offset=4)) == 8
    assert class_count(DataLoader(Subset(Every(named(), offset=4), [0, 3]), 4)) == 8
    # no names: the labels of all parts
    assert class_count(ConcatDataset([named(), Every(named(), offset=4)])) == 8


def test_the_names_nearest_to_the_labels_count() -> None:
    class Two(Every):
        classes = ("even", "odd")

    assert class_count(Two(named(classes=2))) == 2
    assert class_count(DataLoader(Every(Two(named(classes=2))), 4)) == 2


def test_a_wrapper_that_names_itself_its_dataset_ends_the_search() -> None:
    class Own(TensorDataset):
        @property
        def dataset(self) -> Own:
            return self

    assert class_count(Own(torch.zeros(6, 2), torch.arange(6) % 3)) == 3
    assert class_count(Own(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64))) == 1
