"""What a batch may be, and what of it are inputs and targets."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mint_compress.data.batch_kinds import understood
from mint_compress.data.batching import batches
from mint_compress.errors import MintError

X = torch.arange(2 * 3 * 4 * 4).float().view(2, 3, 4, 4)
Y = torch.tensor([1, 0])
BOXES = [{"boxes": torch.zeros(k, 4), "labels": torch.zeros(k).long()} for k in (1, 3)]
Pair = namedtuple("Pair", "image label")

KINDS: dict[str, tuple[Any, Any, Any]] = {
    "images": (X, X, None),
    "a list of one": ([X], X, None),
    "a pair": ((X, Y), X, Y),
    "a list of two": ([X, Y], X, Y),
    "a named pair": (Pair(X, Y), X, Y),
    "without targets": ((X, None), X, None),
    "inputs by position": (((X, X), Y), (X, X), Y),
    "inputs by name": (({"x": X}, Y), {"x": X}, Y),
    "Hugging Face": ({"pixel_values": X, "labels": Y}, {"pixel_values": X}, Y),
    "a dict of inputs": ({"pixel_values": X}, {"pixel_values": X}, None),
    "floats": ((X, X * 2), X, X * 2),
    "numbers in a list": ((X, [1, 0]), X, Y),
    "dicts of tensors": ((X, {"depth": X, "label": Y}), X, {"depth": X, "label": Y}),
    "detection": ((list(X), BOXES), X, BOXES),
    "detection, tuples": ((tuple(X), tuple(BOXES)), X, tuple(BOXES)),
    "detection, stacked": ((X, BOXES), X, BOXES),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_targets_are_found(kind: str) -> None:
    batch, inputs, targets = KINDS[kind]
    found = understood(batch)
    assert same(found[0], inputs) and same(found[1], targets)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y, Y), r"gives a tuple of 3 \(\(2, 3, 4, 4\) of float32, \(2,\) of int64, \(2,\) of int64\)"),
        ("a path", "The loader gives a str per batch. Taken are inputs, or"),
        ((["a.jpg", "b.jpg"], Y), r"a tuple of 2 \(a list of 2 str, \(2,\) of int64\)"),
        ((X, Y[:1]), r"shapes \(2, 3, 4, 4\), \(1,\) in one batch"),
        ((X, {"boxes": torch.zeros(5, 4)}), r"shapes \(2, 3, 4, 4\), \(5, 4\)"),
        ((X, BOXES[:1]), r"shapes \(2, 3, 4, 4\) with a list of 1 dicts \(boxes, labels\)"),
        (([X[0], X[1, :, :2]], BOXES), r"of different sizes in one batch, \(3, 2, 4\) and \(3, 4, 4\)"),
        ((torch.tensor(3.0), None), r"shapes \(\) in one batch"),
    ],
)
def test_what_is_not_understood_is_named(batch: Any, message: str) -> None:
    with pytest.raises(MintError, match=message) as caught:
        understood(batch)
    assert "\n" not in str(caught.value)


class Detected(Dataset[Any]):
    """As many boxes as the number of the image; optionally none at all."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        image = torch.full((3, 4, 4), float(index))
        return image, self.target(index)


def test_samples_with_unequal_targets_come_as_a_list() -> None:
    source = Detected(lambda k: {"boxes": torch.full((k, 4), float(k)), "labels": torch.arange(k)})
    found = list(batches(source, 2))
    assert [x.shape[0] for x, _ in found] == [2, 2, 1]
    assert [[len(one["labels"]) for one in targets] for _, targets in found] == [[0, 1], [2, 3], [4]]
    # boxes stay one dict an image even where there are as many of them in each
    equal = Detected(lambda k: {"boxes": torch.zeros(1, 4)})
    assert [type(targets) for _, targets in batches(equal, 3)] == [list, list]
    assert [targets for _, targets in batches(Detected(lambda k: None), 3)] == [None, None]
    numbers = Detected(lambda k: {"depth": torch.full((4, 4), float(k)), "sign": k % 2})
    _, targets = next(iter(batches(numbers, 3)))
    assert targets["depth"].shape == (3, 4, 4) and targets["sign"].tolist() == [0, 1, 0]


def test_a_dataset_of_images_alone_and_a_loader_over_it_say_the_same() -> None:
    source = TensorDataset(torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    for given in (source, DataLoader(source, 2), [[x] for x in source.tensors[0].split(2)]):
        found = list(batches(given, 2))
        assert all(targets is None for _, targets in found)
        assert torch.equal(torch.cat([x for x, _ in found]), source.tensors[0])  # type: ignore[arg-type]
