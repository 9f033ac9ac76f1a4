"""A run on labels that do not fit ends before calibration; on unusual ones it says how it takes them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mint_compress.compression import compress
from mint_compress.errors import MintError
from mint_compress.nn.contexts import seeded
from mint_compress.reporting.records import Metric


def segmenter(outputs: int = 2) -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, outputs, 1),
        ).eval()  # fmt: skip


def classifier(outputs: int) -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs),
        ).eval()  # fmt: skip


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def brighter(x: Tensor) -> Tensor:
    return (x.mean((1, 2, 3)) > 0).long()


def maps(x: Tensor, void: int = 255) -> Tensor:
    labels = (x[:, 0] > 0).long()
    labels[:, :2] = void
    return labels


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Compress on the labels that a function makes of the images; say which stages there were."""

    def compressed(network: nn.Module, *labelled: Callable[[Tensor], Tensor], **options: Any) -> Any:
        module = types.ModuleType("first_look_data")
        each = labelled * (3 // len(labelled))
        splits = tuple(
            TensorDataset(x, make(x)) for x, make in zip(map(images, (96, 40, 48)), each, strict=True)
        )
        module.splits = lambda: splits  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "first_look_data", module)
        asked = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", **options}
        return compress(network, "first_look_data:splits", **asked)

    return compressed


@pytest.mark.parametrize("split", [0, 1, 2])
def test_labels_that_do_not_fit_end_a_run_before_calibration(run: Callable[..., Any], split: int) -> None:
    def from_one(x: Tensor) -> Tensor:
        return torch.arange(len(x)) % 10 + 1

    def from_zero(x: Tensor) -> Tensor:
        return torch.arange(len(x)) % 10

    labelled = [from_one if i == split else from_zero for i in range(3)]
    stages: list[str] = []
    with pytest.raises(MintError) as caught:
        run(classifier(10), *labelled, progress=lambda stage, *_: stages.append(stage))
    name = ("training", "validation", "test")[split]
    assert str(caught.value).startswith(
        f"The {name} data has the label 10, but the network has 10 outputs. Labels are integers from 0: "
        "subtract 1 if these begin at 1. Taken are integer class labels (n,)"
    )
    assert not {"calibration", "scoring", "accuracy"} & set(stages)


def test_labels_of_another_shape_end_a_run_before_calibration(run: Callable[..., Any]) -> None:
    message = r"output \(2, 2, 8, 8\) does not fit labels \(2,\) of torch.int64 in the training data"
    with pytest.raises(MintError, match=message):
        run(segmenter(), brighter)
    with pytest.raises(MintError, match=r"output \(2, 2\) does not fit labels \(2, 8, 8\)"):
        run(classifier(2), maps, dry_run=True)


@pytest.mark.parametrize("void", [255, -100])
def test_ignored_pixels_count_nowhere_and_the_notes_say_so(run: Callable[..., Any], void: int) -> None:
    network = segmenter()
    _, report = run(network, lambda x: maps(x, void), epochs=1)
    assert "in 2 classes" in "\n".join(report.notes)
    assert "pixels labelled 255 or -100 are ignored, in the loss and in what is measured" in report.notes
    x = images(48)
    with torch.no_grad():
        right = (network(x).argmax(1) == maps(x, void))[:, 2:]
    assert report.task == "segmentation" and report.metric == Metric("mIoU", "%")
    assert report.details["pixel accuracy"].original == int(right.sum()) / right.numel()
    assert [one.support for one in report.classes] == [
        int((maps(x, void)[:, 2:] == number).sum()) for number in (0, 1)
    ]
    assert 0 <= report.quality.last <= 1


def test_one_logit_is_taken_for_two_classes_and_the_notes_say_so(run: Callable[..., Any]) -> None:
    network = classifier(1)
    x = images(48)
    with torch.no_grad():  # a bias between two outputs, so that both signs occur and no logit is 0
        middle = network(x).flatten().sort().values[23:25].mean()
        network[-1].bias -= middle  # type: ignore[index, operator, union-attr]
        right = (network(x).flatten() > 0) == brighter(x)
    _, report = run(network, brighter, epochs=1)
    assert "one output: taken for the logit of class 1 against class 0" in report.notes
    assert report.accuracy.original == int(right.sum()) / 48
    assert report.data.classes == 2
    assert report.accuracy.last is not None


def test_plain_classes_need_no_note(run: Callable[..., Any]) -> None:
    _, report = run(classifier(2), brighter)
    assert "task: classification, by accuracy (the targets are whole numbers, one a sample)" in report.notes
    assert not [note for note in report.notes if "one output" in note or "pixels" in note]
