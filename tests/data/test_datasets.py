"""Draws, splits, batches and augmentation."""

# mypy: disable-error-code="arg-type,union-attr,index,operator,no-untyped-call"

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from toydata import arrays

from mint_compress.data.augmentation import flip_and_crop
from mint_compress.data.batching import batch_count, batches
from mint_compress.data.datasets import ArrayDataset
from mint_compress.data.splits import balanced_draw, stratified_split
from mint_compress.errors import MintError


def test_small_classes_are_filled_up_from_the_rest() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    drawn = balanced_draw(labels, 30, seed=0)
    assert len(drawn.unique()) == 30
    counts = torch.bincount(labels[drawn]).tolist()
    assert counts[1] == 3
    assert sorted(counts[::2]) == [13, 14]


def test_stratified_split_is_exact() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 31)
    kept, out = stratified_split(labels, 6)
    assert torch.bincount(labels[out]).tolist() == [1, 2, 3]
    assert sorted(kept.tolist() + out.tolist()) == list(range(61))
    assert torch.equal(out, stratified_split(labels, 6)[1])
    assert not torch.equal(out, stratified_split(labels, 6, seed=1)[1])


def test_batches_come_in_order_or_shuffled_by_a_generator() -> None:
    numbers = torch.arange(10).view(10, 1).float()
    for dataset in (ArrayDataset(numbers, torch.arange(10)), TensorDataset(numbers, torch.arange(10))):
        assert [y.tolist() for _, y in batches(dataset, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert batch_count(dataset, 4) == 3
        orders = [
            torch.cat([y for _, y in batches(dataset, 4, generator=torch.Generator().manual_seed(s))])
            for s in (1, 1, 2)
        ]
        assert sorted(orders[0].tolist()) == list(range(10))
        assert torch.equal(orders[0], orders[1])
        assert not torch.equal(orders[0], orders[2])
    loader = DataLoader(TensorDataset(numbers, torch.arange(10)), batch_size=5)
    assert [len(y) for _, y in batches(loader, 4)] == [5, 5]
    assert batch_count(loader, 4) == 2


def test_streams_and_odd_items() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([(torch.zeros(2), i) for i in range(5)])

    assert [y.tolist() for _, y in batches(Stream(), 2)] == [[0, 1], [2, 3], [4]]
    with pytest.raises(MintError, match="has no length"):
        batch_count(Stream(), 2)
    with pytest.raises(MintError, match="do not make a batch"):
        list(batches(TensorDatasetOfStrings(), 2))

    for read in (batch_count, lambda source, size: list(batches(source, size))):
        with pytest.raises(MintError, match=r"and Data is neither\. Of a Data, give one split: data\.train"):
            read(arrays(), 2)


class TensorDatasetOfStrings(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> object:
        return object(), index


def test_flip_and_crop_moves_and_mirrors_within_the_padding() -> None:
    image = torch.arange(1.0, 37).view(1, 1, 6, 6)
    out = flip_and_crop(image.expand(400, 1, 6, 6), padding=2, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0, 0], [2] * 4)
    windows = {
        (mirrored, top, left): (padded.flip(1) if mirrored else padded)[top : top + 6, left : left + 6]
        for mirrored in (False, True)
        for top in range(5)
        for left in range(5)
    }
    seen = set()
    for one in out[:, 0]:
        found = [key for key, window in windows.items() if torch.equal(window, one)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 50
