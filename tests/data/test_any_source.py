"""Loaders as they are, images without labels, and targets of every kind."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mint_compress as mint
from mint_compress.data.batching import batches
from mint_compress.data.data import Data
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError


def numbered(count: int, *targets: Tensor) -> TensorDataset:
    """Images whose every pixel is their number."""
    images = torch.arange(count).float().view(count, 1, 1, 1).expand(count, 3, 4, 4)
    return TensorDataset(images, *targets)


def numbers(source: Any) -> list[int]:
    return sorted(int(v) for x, _ in batches(source, 7) for v in x[:, 0, 0, 0])


def test_one_loader_is_split_into_three() -> None:
    loader = DataLoader(numbered(40, torch.arange(40) % 4), 8, shuffle=True)
    data = load_data(loader)
    parts = [numbers(source) for source in (data.train, data.validation, data.test)]
    assert sorted(n for part in parts for n in part) == list(range(40)) and [len(part) for part in parts] == [
        33,
        3,
        4,
    ]
    assert data.sizes == (33, 3, 4) and data.classes == 4 and data.name == "loaders"
    again = load_data(DataLoader(numbered(40, torch.arange(40) % 4), 8, shuffle=True))
    assert numbers(again.test) == parts[2]


def test_a_list_of_batches_gives_its_last_ones() -> None:
    images = numbered(50).tensors[0]
    data = load_data(list(images.split(2)))
    parts = [numbers(source) for source in (data.train, data.validation, data.test)]
    assert parts == [list(range(42)), list(range(42, 46)), list(range(46, 50))]
    assert data.classes is None and "without labels" in data.description


class Stream:
    """Can be gone through again, and has neither numbers nor a length."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from numbered(12).tensors[0].split(4)


def test_a_stream_serves_for_all_and_says_so() -> None:
    data = load_data(Stream())
    assert data.train is data.test and "measured on what it was repaired with" in data.description
    inputs, targets = data.calibration(10, seed=0)
    assert inputs[:, 0, 0, 0].tolist() == list(range(10)) and targets is None
    with pytest.raises(MintError, match="list_iterator"):
        load_data(iter([torch.zeros(2, 3, 4, 4)]))


def test_a_tuple_a_dict_and_arguments_are_the_same() -> None:
    train, val, test = numbered(40, torch.arange(40) % 4), numbered(8, torch.arange(8) % 4), numbered(9)
    for data in (
        load_data((train, val, test)),
        load_data({"train": train, "val": val, "test": test}),
        Data.from_loaders(train, val, test),
    ):
        assert (data.train, data.validation, data.test) == (train, val, test)
    data = Data.from_loaders(train, test=val)
    assert data.test is val and data.sizes == (36, 4, 8)
    data = load_data((train, val))
    assert data.test is val and data.sizes == (36, 4, 8)


class Module:
    """As a LightningDataModule is written."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbered(20, torch.arange(20) % 2), 4)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbered(6, torch.arange(6) % 2), 4)

    def test_dataloader(self) -> None:
        """There is none."""


def test_a_data_module_is_set_up_and_asked() -> None:
    module = Module()
    data = load_data(module)
    assert module.calls == ["prepare", "fit", "test"]
    assert data.sizes == (18, 2, 6) and data.classes == 2


def test_what_hugging_face_collates_goes_in_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 2)

        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.body(pixel_values).relu().mean((2, 3)))}

    def rows(count: int) -> list[dict[str, Tensor]]:
        images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
        return [{"pixel_values": x, "labels": (x.mean((1, 2, 3)) > 0).long()} for x in images.split(16)]

    splits = {"train": rows(96), "val": rows(32), "test": rows(48)}
    small, report = mint.compress(Net(), splits, ratio=0.4, round_to=1, epochs=1, device="cpu")
    assert report.task == "classification" and report.data is not None and report.data.classes == 2
    assert report.quality.last is not None and small.get_parameter("head.weight").shape[1] < 16


# ---- targets


def test_images_alone_floats_and_boxes_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case of a regressor's user, whose data were refused even without any training."""
    x, y = torch.rand(256, 3, 16, 16), torch.rand(256, 3, 16, 16)
    module = types.ModuleType("mydata")
    module.pairs = lambda: (TensorDataset(x, y), TensorDataset(x, y))  # type: ignore[attr-defined]
    module.only = lambda: (DataLoader(TensorDataset(x), 32), DataLoader(TensorDataset(x), 32))  # type: ignore[attr-defined]
    module.boxes = lambda: tuple(  # type: ignore[attr-defined]
        DataLoader([(i, {"boxes": torch.rand(1, 4)}) for i in x], 32) for _ in "abc"
    )
    monkeypatch.setitem(sys.modules, "mydata", module)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 3, 3, 1, 1))
    options: dict[str, Any] = {"ratio": 0.5, "epochs": 0, "heal_epochs": 0, "device": "cpu"}
    found = {}
    for name in ("pairs", "only", "boxes"):
        _, report = mint.compress(net, f"mydata:{name}", **options)
        assert report.ratio.removed >= 0.5 and report.metric is not None
        found[name] = (report.task, report.metric.name)
        assert report.data.classes is None
    assert found == {
        "pairs": ("regression", "R²"),
        "only": ("imitation", "agreement"),
        "boxes": ("imitation", "agreement"),
    }
    assert any("dict (boxes)" in note and "--task" in note for note in report.notes)


@pytest.mark.parametrize(
    ("targets", "dtype", "shape", "classes"),
    [
        (np.arange(40) / 4, torch.float32, (4,), None),
        (np.random.default_rng(0).random((40, 2)), torch.float32, (4, 2), None),
        (np.eye(40, 3, dtype=np.int32), torch.int64, (4, 3), None),
        (np.arange(40 * 64).reshape(40, 8, 8) % 5, torch.int64, (4, 8, 8), 5),
        (np.full((40, 8, 8), 255, np.uint8), torch.int64, (4, 8, 8), 1),
        (np.arange(40)[:, None] % 3, torch.int64, (4,), 3),
        (np.zeros(40, np.int64), torch.int64, (4,), 1),
        (np.arange(40) % 2 == 0, torch.int64, (4,), 2),
    ],
)
def test_arrays_may_have_any_targets(
    tmp_path: Path, targets: Any, dtype: torch.dtype, shape: tuple[int, ...], classes: int | None
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, x_train=images, y_train=targets, x_test=images, y_test=targets)
    data = load_data(str(path))
    _, drawn = data.calibration(4, seed=0)
    assert (drawn.dtype, tuple(drawn.shape), data.classes) == (dtype, shape, classes)
    assert (data.augmented is data.train) == (len(shape) > 1 or dtype != torch.int64)
    assert data.sizes == (36, 4, 40)
    _, all_of_them = data.train.gather(torch.arange(36))  # type: ignore[union-attr]
    _, held_out = data.validation.gather(torch.arange(4))  # type: ignore[union-attr]
    every = torch.cat([all_of_them, held_out]).double().sum()
    assert float(every) == pytest.approx(float(np.asarray(targets, float).sum()), rel=1e-6)


def test_arrays_may_have_no_targets(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, x_test=images[:7])
    data = load_data(str(tmp_path / "a.npz"))
    assert data.sizes == (36, 4, 7) and data.classes is None and data.augmented is not data.train
    assert "36 train, 4 validation, 7 test images of 3x8x8 without labels" in data.description
    np.savez(tmp_path / "b.npz", x_train=images, x_test=images, y_test=np.zeros(40))
    with pytest.raises(MintError, match="has no y_train"):
        load_data(str(tmp_path / "b.npz"))


# ---- images:DIR


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(30):
        path = tmp_path / "photos" / f"{number % 3}" / ("deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (8 * number, 0, 0)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / ".hidden" / "a.png")
    return tmp_path / "photos"


def test_images_without_labels_are_found_at_any_depth(folder: Path) -> None:
    data = load_data(f"images:{folder}", input_shape=(3, 8, 8), mean=(0.0,), std=(1.0,))
    assert data.sizes == (25, 2, 3) and data.classes is None and data.augmented is not data.train
    assert "without labels" in data.description and "1 files passed over (.txt 1)" in data.description
    seen = [
        round(float(v) * 255 / 8)
        for source in (data.train, data.validation, data.test)
        for x, y in batches(source, 5)
        for v in x[:, 0, 0, 0]
    ]
    assert sorted(seen) == list(range(30))
    inputs, targets = data.calibration(9, seed=1)
    assert inputs.shape == (9, 3, 8, 8) and targets is None
    assert len({float(v) for v in inputs[:, 0, 0, 0]}) == 9


def test_folders_called_train_and_test_are_the_splits(folder: Path) -> None:
    (folder / "0").rename(folder / "train")
    (folder / "1").rename(folder / "test")
    data = load_data(f"images:{folder}", input_shape=(3, 8, 8))
    assert data.sizes == (9, 1, 10)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"No such folder: .*nowhere'. Write images:DIR"):
        load_data(f"images:{tmp_path}/nowhere")
    (tmp_path / "a.heic").touch()
    with pytest.raises(MintError, match=r"has no images: passed over were \.heic 1\. Name a folder"):
        load_data(f"images:{tmp_path}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MintError, match=r"has 1 images\. Three are needed"):
        load_data(f"images:{tmp_path}")
