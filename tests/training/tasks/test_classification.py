"""Losses against values by hand, the logits among several outputs, and what every class gets right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mint_compress as mint
from mint_compress.errors import MintError
from mint_compress.training.evaluation import evaluate
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.distance import output_distance


def test_losses_against_hand_values() -> None:
    logits, labels = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])
    plain = Classification(label_smoothing=0).loss(logits, labels)
    assert float(plain) == pytest.approx(-math.log(0.75))
    smooth = Classification(label_smoothing=0.1).loss(logits, labels)
    assert float(smooth) == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25))
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    got = Classification(temperature=2).divergence(logits * 2, torch.zeros(1, 2))
    assert float(got) == pytest.approx(4 * divergence)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, float], message: str) -> None:
    with pytest.raises(MintError, match=message):
        Classification(**numbers)  # type: ignore[arg-type]


def test_the_figures_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator)
    labels = (torch.rand(500, generator=generator) * 6).long().clamp(max=2)  # nothing of class 3
    found = evaluate(nn.Identity(), TensorDataset(logits, labels), Classification(), batch_size=64)
    predicted = logits.argmax(1)
    assert found.value == float((predicted == labels).double().mean())
    assert found.classes[3] is None and found.support == (*torch.bincount(labels).tolist(), 0)
    recalls = [float((predicted == c)[labels == c].double().mean()) for c in range(3)]
    assert found.classes[:3] == pytest.approx(recalls)
    oracle = balanced_accuracy_score(labels, predicted)
    assert found.details["balanced accuracy"] == pytest.approx(oracle)
    largest = float((labels == 2).double().mean())
    assert found.details["share of the largest class"] == pytest.approx(largest)


class Faces(nn.Module):
    """As MTCNN's O-Net: boxes, landmarks, and the probabilities of no face and face."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.boxes, self.landmarks, self.face = nn.Linear(32, 4), nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.body(x)
        return self.boxes(x), self.landmarks(x), self.face(x).softmax(1)


@pytest.fixture(scope="module")
def faces() -> tuple[Faces, dict[str, TensorDataset]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Faces()
        data = {}
        for name, count in (("train", 512), ("val", 128), ("test", 256)):
            x = torch.randn(count, 12)
            data[name] = TensorDataset(x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long())
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(300):
            x, y = data["train"].tensors
            boxes, landmarks, face = model(x)
            own = (boxes - x[:, :4]).square().mean() + (landmarks - x[:, 2:] ** 2).square().mean()
            loss = own - face.gather(1, y[:, None]).log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), data


def test_the_output_with_the_classes_is_found_and_the_others_are_kept(faces: Any) -> None:
    model, data = faces
    small, report = mint.compress(model, data, ratio=0.4, round_to=1, epochs=3, device="cpu")
    assert report.task == "classification"
    assert "output 3, (2,) a sample, holds the classes" in report.notes
    assert any("probabilities" in note for note in report.notes)
    x, y = data["test"].tensors
    with torch.no_grad():
        wanted, found = model(x), small(x)
    assert report.quality.original == float((wanted[2].argmax(1) == y).double().mean()) > 0.85
    assert report.accuracy.last is not None and report.accuracy.last > report.quality.original - 0.05
    # boxes and landmarks still say what they said
    assert float(output_distance(found[:2], wanted[:2])) < 0.2


def test_no_output_for_the_classes_is_an_error_that_names_them() -> None:
    outputs = torch.zeros(2, 4), torch.zeros(2, 10)
    message = r"labels have 3 classes, and none of the network's outputs \(2, 4\), \(2, 10\) has as many"
    with pytest.raises(MintError, match=message):
        Classification().settled(outputs, torch.tensor([0, 1, 2]), asked=False)
    assert Classification().settled(outputs, torch.tensor([0, 1, 2]), asked=True).logits == 0
    assert Classification().settled(outputs, torch.arange(10), asked=False).logits == 1
    assert Classification(output=1).settled(outputs, torch.arange(3), asked=False).logits == 1
    assert Classification().settled(outputs[:1], torch.arange(3), asked=False).logits == 0


def test_logarithms_of_probabilities_are_logits() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    task = Classification().settled(logits.softmax(1), labels, asked=False)
    assert task.probabilities and not Classification().settled(logits, labels, asked=False).probabilities
    assert float(task.loss(logits.softmax(1), labels)) == pytest.approx(
        float(Classification().loss(logits, labels)), rel=1e-5
    )


def test_a_rare_class_that_is_lost_is_named_in_the_last_lines() -> None:
    """4 % positives: accuracy goes up while the recall of the rare class falls."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 20)).astype(np.float32)
    rare = (np.tanh(x) @ rng.normal(size=20)) / 2 + x[:, 0] * x[:, 1] > 2.6
    images, labels = torch.from_numpy(x), torch.from_numpy(rare.astype(np.int64))
    rows = {"train": slice(3600), "val": slice(3600, 4000), "test": slice(4000, None)}
    sets = {name: TensorDataset(images[part], labels[part]) for name, part in rows.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 2),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(8):
            for some in torch.randperm(4000).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(
                    model(images[some]), labels[some], weight=torch.tensor([1.0, 20.0])
                )
                loss.backward()
                optimizer.step()
    small, report = mint.compress(model.eval(), sets, ratio=0.5, distill=False, device="cpu")
    x, y = sets["test"].tensors

    def recall(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(x).argmax(1) == 1)[y == 1].double().mean())

    assert report.accuracy.last > report.accuracy.original
    worst = report.classes[1]
    assert (worst.original, worst.compressed) == pytest.approx((recall(model), recall(small)))
    assert worst.support == int(y.sum()) and worst.lost > 0.1
    said = str(report)
    assert f"class 1 lost most: {100 * worst.original:.1f} % -> {100 * worst.compressed:.1f} %" in said
    assert "balanced accuracy" in said and "share of the largest class" in said
