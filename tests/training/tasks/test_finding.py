"""Which task it is: by outputs and targets, by its name, or with a loss and a metric of one's own."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mint_compress as mint
from mint_compress.errors import MintError
from mint_compress.settings import TASKS
from mint_compress.training.tasks.finding import KINDS, default_task, find_task
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.own import Own
from mint_compress.training.tasks.regression import Regression


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


FOUND = [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1), "scores": torch.zeros(1)}] * 2
CASES: dict[str, tuple[Any, Any, str]] = {
    "no targets": (drawn(4, 3), None, "imitation"),
    "classes": (drawn(4, 3), torch.tensor([0, 1, 2, 1]), "classification"),
    "bytes": (drawn(4, 3), torch.tensor([0, 1, 2, 1], dtype=torch.uint8), "classification"),
    "one logit": (drawn(4, 1), torch.tensor([0, 1, 1, 1]), "classification"),
    "unit vectors": (nn.functional.normalize(drawn(4, 64), dim=1), torch.tensor([0, 1, 2, 1]), "embedding"),
    "label maps": (drawn(4, 3, 5, 5), torch.zeros(4, 5, 5).long(), "segmentation"),
    "masks": (drawn(4, 1, 5, 5), torch.zeros(4, 1, 5, 5), "segmentation"),
    "several hot": (drawn(4, 3), (drawn(4, 3) > 0).float(), "multilabel"),
    "several hot, bool": (drawn(4, 3), drawn(4, 3) > 0, "multilabel"),
    "several hot, int": (drawn(4, 3), (drawn(4, 3) > 0).int(), "multilabel"),
    "numbers": (drawn(4, 3), drawn(4, 3), "regression"),
    "one number": (drawn(4, 1), drawn(4), "regression"),
    "images": (drawn(4, 3, 5, 5), drawn(4, 3, 5, 5), "regression"),
    "boxes": (FOUND, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}] * 2, "detection"),
    "boxes for maps": ([drawn(2, 5, 3, 3)], [{"boxes": torch.zeros(1, 4)}] * 2, "imitation"),
    "anything else": (drawn(4, 3), {"depth": drawn(4, 3)}, "imitation"),
}


@pytest.mark.parametrize("case", CASES)
def test_targets_speak_for_a_task(case: str) -> None:
    outputs, targets, name = CASES[case]
    task, reason = default_task(outputs, targets)
    assert task.name == name and reason
    assert ("--task" in reason) == (name == "imitation" and targets is not None)


def test_class_numbers_in_another_form_are_refused() -> None:
    one_hot = torch.eye(3)[torch.tensor([0, 1, 2, 1])]
    with pytest.raises(MintError, match=r"are one-hot: every row has a single 1.*labels.argmax\(1\)"):
        default_task(drawn(4, 3), one_hot)
    with pytest.raises(MintError, match=r"floats, for 3 outputs\. Save class numbers as int64"):
        default_task(drawn(4, 3), torch.tensor([0.0, 1.0, 2.0, 1.0]))


def test_every_name_of_the_option_is_a_task() -> None:
    assert tuple(KINDS) == TASKS
    for name in TASKS:
        task = find_task(name)
        assert task is not None and task.name == name and task.metric.name
    assert find_task(None) is None


class Weighted(Regression):
    """A task of one's own."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return 2 * super().loss(outputs, targets)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def largest_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().max()


largest_error.higher_is_better = False  # type: ignore[attr-defined]
largest_error.unit = "mm"  # type: ignore[attr-defined]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("own_job")
    vars(made).update(
        Weighted=Weighted, task=Weighted(), number=5, loss=own_loss, largest=largest_error,
        text=lambda outputs, targets: "good", pair=lambda outputs, targets: (outputs - targets).mean(0),
        detached=lambda outputs, targets: (outputs - targets).detach().mean(),
        broken=lambda outputs, targets: outputs.nothing,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "own_job", made)
    return made


def test_a_task_of_ones_own_is_imported(module: types.ModuleType) -> None:
    for spec in ("own_job:Weighted", "own_job:task", Weighted, Weighted()):
        task = find_task(spec)
        assert isinstance(task, Weighted) and float(task.loss(torch.ones(2, 1), torch.zeros(2, 1))) == 2
    with pytest.raises(MintError, match=r"The task 'own_job:number' is a int\. It must be classification"):
        find_task("own_job:number")
    with pytest.raises(MintError, match="Cannot import 'nowhere' for the task 'nowhere:task'"):
        find_task("nowhere:task")
    with pytest.raises(MintError, match=r"The loss 'own_job:number' is a int\. It must be callable"):
        find_task(None, loss="own_job:number")


def job(**options: Any) -> tuple[nn.Module, mint.Report]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
        sets = {}
        for name, count in (("train", 128), ("val", 32), ("test", 64)):
            x = torch.randn(count, 6)
            sets[name] = TensorDataset(x, torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1))
    settings = {"ratio": 0.3, "round_to": 1, "epochs": 1, "device": "cpu", **options}
    return mint.compress(net, sets, **settings)


def test_loss_and_metric_of_ones_own_go_through_a_run(module: types.ModuleType) -> None:
    _, report = job(loss="own_job:loss", metric="own_job:largest", task="regression")
    assert report.task == "regression" and report.metric is not None
    assert (report.metric.name, report.metric.unit) == ("largest_error", "mm")
    assert not report.metric.higher_is_better
    assert report.settings["loss"] == "own_job:loss" and " mm after removal" in str(report)
    from torchmetrics import MeanAbsoluteError

    _, report = job(loss=own_loss, metric=MeanAbsoluteError)
    assert report.metric is not None and report.metric.name == "MeanAbsoluteError"
    assert report.metric.higher_is_better is False
    assert (report.settings["loss"], report.settings["metric"]) == ("own_loss", "MeanAbsoluteError")


def test_a_torchmetrics_object_adds_up_all_batches() -> None:
    from torchmetrics import MeanAbsoluteError

    outputs, targets = drawn(10, 3), torch.zeros(10, 3)
    for metric in (MeanAbsoluteError, MeanAbsoluteError(), lambda a, b: (a - b).abs().mean()):
        meter = Own(Imitation(), own_metric=metric).meter()
        for rows in torch.arange(10).split(4):
            meter.update(outputs[rows], targets[rows])
        assert meter.compute().value == pytest.approx(float(outputs.abs().mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "own_job:text"}, "The metric <lambda> gives 'good'. It must give one finite number"),
        ({"metric": "own_job:pair"}, r"The metric <lambda> gives tensor\(.*It must give one finite number"),
        ({"metric": "own_job:broken"}, "The metric <lambda> failed: AttributeError"),
        ({"loss": "own_job:pair"}, r"The loss <lambda> gives \(2,\) of float32. It must give one number"),
        ({"loss": "own_job:detached"}, "The loss <lambda> has no gradient. Compute it from the outputs"),
        ({"loss": "own_job:broken"}, "The loss <lambda> failed: AttributeError"),
    ],
)
def test_what_cannot_serve_ends_a_run_before_anything_long(
    module: types.ModuleType, options: dict[str, Any], message: str
) -> None:
    stages: list[str] = []
    with pytest.raises(MintError, match=message) as caught:
        job(progress=lambda stage, *_: stages.append(stage), **options)
    assert set(stages) <= {"read the model"} and "\n" not in str(caught.value)
