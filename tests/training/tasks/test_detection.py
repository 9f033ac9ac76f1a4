"""A detector as torchvision writes them: losses from images and targets in training, boxes after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mint_compress.data.batching import batches
from mint_compress.errors import MintError
from mint_compress.training.evaluation import evaluate
from mint_compress.training.finetuning import finetune_
from mint_compress.training.first_look import settle_task
from mint_compress.training.tasks.detection import Detection


class OneBox(nn.Module):
    """Finds the one bright square in an image of 16 by 16."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 32), nn.ReLU()
        )
        self.box, self.label = nn.Linear(32, 4), nn.Linear(32, 2)

    def forward(self, images: Any, targets: Any = None) -> Any:
        x = self.body(torch.stack(list(images)))
        box, label = self.box(x), self.label(x)
        corners = torch.cat([box[:, :2], box[:, :2] + box[:, 2:].abs()], 1)
        if self.training:
            assert isinstance(images, list) and isinstance(targets, list)
            wanted = torch.cat([one["boxes"] for one in targets])
            labels = torch.cat([one["labels"] for one in targets])
            return {
                "box": (corners - wanted).abs().mean(),
                "label": nn.functional.cross_entropy(label, labels),
            }
        best, number = label.softmax(1).max(1)
        return [
            {"boxes": corners[i : i + 1], "labels": number[i : i + 1], "scores": best[i : i + 1]}
            for i in range(len(x))
        ]


def loader(count: int, seed: int) -> list[Any]:
    """Lists of images and of targets, as the collate functions of torchvision's references give them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        top, left, side = (int(torch.randint(n, (), generator=generator)) for n in (7, 7, 4))
        side += 5
        image = 0.1 * torch.randn(1, 16, 16, generator=generator)
        image[:, top : top + side, left : left + side] += 1 if side > 6 else -1
        box = torch.tensor([[left, top, left + side, top + side]]).float()
        made.append((image, {"boxes": box, "labels": torch.tensor([int(side > 6)])}))
    return [tuple(zip(*made[start : start + 16], strict=True)) for start in range(0, count, 16)]


def test_a_detector_is_trained_and_measured_by_its_own_losses() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OneBox().eval()
    train, test = loader(320, 0), loader(64, 1)
    task, notes = settle_task(model, {"the training data": train}, device=torch.device("cpu"))
    assert isinstance(task, Detection) and notes[0].startswith(
        "task: detection, by mAP (the targets are dicts"
    )
    before = evaluate(model, test, task)
    # a teacher's boxes cannot be compared with others: it is gone without
    teacher = OneBox().eval()
    results = finetune_(model, train, teacher=teacher, epochs=25, lr=0.05, device="cpu", validation=test)
    after = evaluate(model, test, task)
    assert results[-1].loss < 0.4 * results[0].loss and "mAP" in results[-1].metric.name
    assert results[-1].validation == pytest.approx(after.value)
    assert after.details["mAP50"] > before.details["mAP50"] + 0.3
    assert after.support == tuple(
        sum(int(one["labels"] == c) for _, targets in batches(test, 1) for one in targets) for c in (0, 1)
    )


def test_what_does_not_fit_is_said() -> None:
    found = [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1), "scores": torch.zeros(1)}] * 2
    with pytest.raises(MintError, match=r"has targets that are \(2,\) of float32. detection takes a list of"):
        Detection().check(found, torch.zeros(2), "the data")
    wanted = [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}] * 2
    with pytest.raises(MintError, match=r"The network returns \(2, 5\) of float32.*--task package"):
        Detection().check(torch.zeros(2, 5), wanted, "the data")
    with pytest.raises(MintError, match=r"In training the network returns \(2, 5\).*not a dict of losses"):
        Detection().loss(torch.zeros(2, 5), wanted)


class Decoded(Detection):
    """For a network of one tensor a box: four corners and a logit."""

    calls_with_targets = False

    def decode(self, outputs: Tensor) -> list[dict[str, Tensor]]:
        return [
            {"boxes": row[None, :4], "scores": row[4:].sigmoid(), "labels": torch.zeros(1).long()}
            for row in outputs
        ]

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        return (outputs[:, :4] - torch.cat([one["boxes"] for one in targets])).abs().mean()


def test_raw_outputs_are_decoded_and_distilled() -> None:
    task, rows = Decoded(), torch.tensor([[0.0, 0.0, 4.0, 4.0, 2.0], [1.0, 1.0, 5.0, 5.0, 3.0]])
    wanted = [{"boxes": row[None, :4], "labels": torch.zeros(1).long()} for row in rows]
    assert task.check(rows, wanted, "the data") == () and task.distils
    meter = task.meter()
    meter.update(rows, wanted)
    assert meter.compute().value == pytest.approx(1.0)
    assert float(task.divergence(rows, rows)) == 0 and float(task.loss(rows + 1, wanted)) == 1
