"""Loaders from a function that the user names."""

# mypy: disable-error-code="arg-type,union-attr,index,operator,no-untyped-call"

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mint_compress.data.batching import batches
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError
from mint_compress.provenance import described

MODULE = """
import torch
from torch.utils.data import *
def made(n, classes=4):
    numbers = torch.arange(n)
    return TensorDataset(numbers.float().view(n, 1, 1, 1).expand(n, 3, 4, 4), numbers % classes)
BATCH = (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
def three(): return {"train": made(40), "val": made(8), "test": made(12)}
def two(): return DataLoader(made(40), batch_size=8, shuffle=True), DataLoader(made(12), batch_size=5)
def wrapped():
    train = DataLoader(Subset(made(40), range(30)), 8, drop_last=True)
    return train, ConcatDataset([made(5), made(4)]), made(12)
def sampled():
    return DataLoader(made(40), 8, sampler=SubsetRandomSampler(range(10, 30))), made(12)
def weighted():
    return DataLoader(made(40), 8, sampler=WeightedRandomSampler([1.0] * 40, 40)), made(12)
class Unsized(Dataset):
    def __getitem__(self, index): return made(40)[index]
def unsized(): return Unsized(), made(12)
def single(): return made(1), made(12)
def leaves():
    raise SystemExit(0)

def broken(): raise ValueError("no disk")
def number(): return 5
def keys(): return {"train": made(4), "tset": made(4)}
def iterators(): return {"train": iter([]), "test": iter([])}
def one_class(): return {"train": made(4, 1), "val": made(4, 1), "test": made(4, 1)}
def stream(): return [BATCH], [BATCH]
def nan(): return made(40), TensorDataset(torch.full((4, 3, 4, 4), float("nan")), torch.arange(4))
def bytes_(): return made(40), TensorDataset(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.arange(4))
def triple(): return [(*BATCH, BATCH[1])], [BATCH], [(*BATCH, BATCH[1])]
def uneven(): return [BATCH] * 2, [BATCH], [(BATCH[0], torch.arange(3))]
def soft(): return made(40), TensorDataset(torch.zeros(4, 3, 4, 4), torch.rand(4))
def maps(n, low=0, high=3, void=255):
    labels = torch.arange(low, high).repeat(n * 16)[: n * 16].view(n, 4, 4).clone()
    labels[:, 0] = void
    return TensorDataset(torch.arange(n).float().view(n, 1, 1, 1).expand(n, 3, 4, 4), labels)
def segmentation(): return maps(40), maps(8), maps(12)
def hundred(): return maps(40, void=-100), maps(8, void=-100), maps(12, void=-100)
def bare(): return made(40), TensorDataset(torch.zeros(4, 3, 4, 4))
"""


@pytest.fixture
def in_module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_loaders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_loaders", raising=False)


@pytest.mark.usefixtures("in_module_folder")
def test_a_function_gives_datasets_or_loaders() -> None:
    data = load_data("my_loaders:three", input_shape=(3, 4, 4))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [40, 8, 12]
    assert (data.classes, data.mean, data.augmented is data.train) == (4, None, True)
    images, labels = data.calibration(10, seed=1)
    assert images.shape == (10, 3, 4, 4)
    assert torch.bincount(labels).max() <= 3
    assert torch.equal(images, data.calibration(10, seed=1)[0])

    data = load_data("my_loaders:two")
    sizes = [sum(len(y) for _, y in batches(s, 99)) for s in (data.train, data.validation, data.test)]
    assert sizes == [36, 4, 12]
    assert data.sizes == (36, 4, 12)
    assert data.description.startswith("my_loaders:two: 36 train, 4 validation, 12 test images of 3x4x4")
    values = [x[:, 0, 0, 0] for s in (data.train, data.validation) for x, _ in batches(s, 7)]
    assert sorted(torch.cat(values).tolist()) == list(range(40))
    assert torch.equal(*(data.calibration(20, seed=3)[0] for _ in range(2)))


@pytest.mark.usefixtures("in_module_folder")
def test_sizes_are_said_of_what_the_splits_give() -> None:
    data = load_data("my_loaders:wrapped")
    given = [sum(len(y) for _, y in batches(s, 99)) for s in (data.train, data.validation, data.test)]
    assert given == [24, 9, 12]
    assert data.sizes == (24, 9, 12)
    assert "24 train, 9 validation, 12 test" in data.description
    facts = described(data)
    assert (facts.train, facts.validation, facts.test) == (24, 9, 12)


@pytest.mark.usefixtures("in_module_folder")
def test_validation_comes_out_of_what_the_sampler_gives() -> None:
    data = load_data("my_loaders:sampled")
    assert data.sizes == (18, 2, 12)
    values = [[x[:, 0, 0, 0] for x, _ in batches(s, 7)] for s in (data.train, data.validation)]
    assert sorted(torch.cat(values[0] + values[1]).tolist()) == list(range(10, 30))
    # still shuffled
    assert torch.cat(values[0]).tolist() != torch.cat([x[:, 0, 0, 0] for x, _ in data.train]).tolist()


@pytest.mark.usefixtures("in_module_folder")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere", "has no attribute 'nowhere'"),
        ("broken", "failed: ValueError: no disk"),
        ("leaves", r"my_loaders:leaves called sys\.exit\(0\)"),
        ("number", "my_loaders:number gives int"),
        ("keys", "gives keys train, tset"),
        ("iterators", "train is a list_iterator"),
        ("stream", "train cannot be split"),
        ("weighted", "the WeightedRandomSampler of train decides by itself which images it gives"),
        ("unsized", "train has no length. Return val too"),
        ("single", "train is too small to split. Return val too"),
        ("nan", "NaN or infinite"),
        ("bytes_", "gives torch.uint8 images"),
        (
            "triple",
            r"gives a tuple of 3 \(\(2, 3, 4, 4\) of float32, \(2,\) of int64, \(2,\) of int64\) per batch",
        ),
        ("uneven", r"inputs and targets of shapes \(2, 3, 4, 4\), \(3,\) in one batch"),
    ],
)
def test_bad_functions_say_what_is_wrong(function: str, message: str) -> None:
    with pytest.raises(MintError, match=message):
        load_data(f"my_loaders:{function}")


@pytest.mark.usefixtures("in_module_folder")
@pytest.mark.parametrize("function", ["segmentation", "hundred"])
def test_pixels_without_a_class_are_no_class_and_maps_are_drawn(function: str) -> None:
    data = load_data(f"my_loaders:{function}")
    assert data.classes == 3 and "in 3 classes" in data.description
    images, labels = data.calibration(25, seed=1)
    assert labels.shape == (25, 4, 4)
    numbers = images[:, 0, 0, 0].long()
    assert len(set(numbers.tolist())) == 25  # each at most once, and with its own map
    assert torch.equal(labels, data.train.tensors[1][numbers])


@pytest.mark.usefixtures("in_module_folder")
def test_loaders_normalise_themselves_and_must_fit_the_network() -> None:
    with pytest.raises(MintError, match="Leave out --mean"):
        load_data("my_loaders:three", mean=[0.5])
    with pytest.raises(MintError, match="images of 3x4x4, but the network takes 3x8x8"):
        load_data("my_loaders:three", input_shape=(3, 8, 8))
    with pytest.raises(MintError, match="Cannot import 'no_such_module'"):
        load_data("no_such_module:loaders")
