"""Targets that fit the outputs and targets that do not; one logit; pixels without a class."""

# mypy: disable-error-code="arg-type,no-untyped-call"

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mint_compress.data.datasets import ArrayDataset
from mint_compress.data.label_maps import class_numbers
from mint_compress.errors import MintError
from mint_compress.nn.contexts import seeded
from mint_compress.training.evaluation import accuracy
from mint_compress.training.finetuning import finetune_
from mint_compress.training.first_look import settle_task
from mint_compress.training.schedule import one_cycle
from mint_compress.training.targets import class_logits, fitted, reading
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
TAKEN = r"Taken are integer class labels \(n,\) for outputs \(n, classes\), and label maps \(n, H, W\)"


def dense(outputs: int = 3) -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, outputs))


def inputs(count: int = 64) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(0))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def one_step(model: nn.Module, source: Dataset[Any], count: int, **options: Any) -> float:
    """The loss of the first and only update."""
    [result] = finetune_(model, source, epochs=1, batch_size=count, device="cpu", **options)
    return result.loss


# ---- refused


UNFIT = {
    "a map": (torch.zeros(64, 4, 4).long(), r"labels \(2, 4, 4\) of torch.int64"),
    "negative": (torch.arange(64) % 3 - 1, r"the label -1, but the network has 3 outputs"),
    "ignored": (torch.full((64,), -100), r"the label -100, but the network has 3 outputs"),
    "from 1": (
        torch.arange(64) % 3 + 1,
        r"the label 3, but the network has 3 outputs. Labels are integers from 0: subtract 1 if these begin",
    ),
    "last alone": (torch.arange(64) // 63 * 7, r"the label 7, .* these are \(64,\) of torch.int64\.$"),
}


@pytest.mark.parametrize("which", UNFIT)
def test_targets_that_do_not_fit_are_refused_before_a_step(which: str) -> None:
    targets, message = UNFIT[which]
    model, source = dense().train(), TensorDataset(inputs(), targets)
    before, calls = state(model), list[int]()
    for data in (source, DataLoader(source, batch_size=2)):
        with pytest.raises(MintError, match=message) as caught:
            finetune_(model, data, epochs=1, device="cpu", progress=lambda _, done, __: calls.append(done))
        assert "training data" in str(caught.value).lower() and "\n" not in str(caught.value)
        with pytest.raises(MintError, match=TAKEN):
            finetune_(model, data, epochs=1, device="cpu")
    held_out = TensorDataset(inputs(), torch.zeros(64).long())
    with pytest.raises(MintError, match=r"(?i)the validation data"):
        finetune_(model, held_out, validation=source, epochs=1, device="cpu")
    assert not calls and model.training
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(MintError, match=TAKEN):
        accuracy(model, source, batch_size=64)


UNKNOWN = {
    "one value": (inputs().sum(1), r"targets that are \(64,\) of float32 for outputs \(2, 3\)"),
    "booleans": (inputs()[:, 0] > 0, r"targets that are \(64,\) of bool for outputs \(2, 3\)"),
    "counts": (torch.full((64, 3), 5), r"targets that are \(64, 3\) of int64"),
}


@pytest.mark.parametrize("which", UNKNOWN)
def test_targets_of_no_task_train_nothing_without_a_teacher(which: str) -> None:
    targets, message = UNKNOWN[which]
    model = dense()
    before = state(model)
    with pytest.raises(MintError, match=message):
        finetune_(model, TensorDataset(inputs(), targets), epochs=1, device="cpu")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_label_in_a_later_batch_of_a_loader_is_found_before_its_step() -> None:
    labels = torch.arange(64) // 63 * 7
    loader = [(x, y) for x, y in zip(inputs().split(16), labels.split(16), strict=True)]
    model, calls = dense(), list[int]()
    with pytest.raises(MintError, match="The data has the label 7, but the network has 3 outputs"):
        finetune_(model, loader, epochs=1, device="cpu", progress=lambda _, done, __: calls.append(done))
    assert calls == [1, 2, 3]


def test_one_output_takes_no_third_class() -> None:
    for outputs in (torch.zeros(3, 1), torch.zeros(3)):
        with pytest.raises(MintError, match=r"label 2, but the network has 1 output, which tells 0 from 1\."):
            fitted(torch.tensor([0, 1, 2]), outputs)
        assert fitted(torch.tensor([0, 1, 1], dtype=torch.uint8), outputs).dtype == torch.int64


def test_a_look_leaves_network_order_and_generators_as_they_were() -> None:
    own = torch.Generator().manual_seed(5)
    source = TensorDataset(inputs(), torch.arange(64) % 3)
    loader = DataLoader(source, batch_size=8, shuffle=True, generator=own)
    model, before = dense().train(), (own.get_state(), torch.get_rng_state())
    weights = state(model)
    task, notes = settle_task(model, {"the training data": loader}, device=CPU)
    assert task == Classification(output=0)
    assert notes == ("task: classification, by accuracy (the targets are whole numbers, one a sample)",)
    assert torch.equal(own.get_state(), before[0]) and torch.equal(torch.get_rng_state(), before[1])
    assert model.training and all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    once = iter(loader)
    settle_task(model, {"the training data": once, "the test data": []}, device=CPU)
    assert len(list(once)) == 8


# ---- ordinary classifiers, bit for bit


def test_the_first_loss_is_torchs_own_bit_for_bit() -> None:
    x, labels, teacher = inputs(32), torch.arange(32) % 3, dense().eval()
    source = ArrayDataset(x, labels)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(4))
    student = dense()
    with torch.no_grad():
        student[0].weight *= 1.5
        logits, taught = copy.deepcopy(student).train()(x[order]), teacher(x[order])
    cross_entropy = functional.cross_entropy(logits, labels[order], label_smoothing=0.1)
    assert one_step(copy.deepcopy(student), source, 32, seed=4) == float(cross_entropy)
    soft, target = ((z / 4.0).log_softmax(1) for z in (logits, taught))
    divergence = functional.kl_div(soft, target, log_target=True, reduction="none").sum(1).mean()
    mixed = (1 - 0.7) * cross_entropy + 0.7 * 4.0**2 * divergence
    assert one_step(copy.deepcopy(student), source, 32, seed=4, teacher=teacher) == float(mixed)


def test_the_first_step_is_torchs_own_bit_for_bit() -> None:
    x, labels, model = inputs(32), torch.arange(32) % 3, dense()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    own = copy.deepcopy(model).train()
    functional.cross_entropy(own(x[order]), labels[order], label_smoothing=0.1).backward()
    nn.utils.clip_grad_norm_(own.parameters(), 5.0)
    weights = [p for p in own.parameters() if p.ndim > 1]
    groups = [
        {"params": weights, "weight_decay": 5e-4},
        {"params": [p for p in own.parameters() if p.ndim < 2]},
    ]
    torch.optim.SGD(groups, lr=0.05 * one_cycle(0, 1), momentum=0.9, nesterov=True).step()
    one_step(model, ArrayDataset(x, labels), 32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))


def test_a_datasets_own_draws_reach_the_training_in_their_order() -> None:
    """What a loader draws from PyTorch's generators while training is not moved by the look at it."""

    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            x, y = super().__getitem__(index)
            seen.append(float(torch.rand(())))
            return x, y

    seen: list[float] = []
    source = Noisy(inputs(8), torch.arange(8) % 3)
    finetune_(dense(), source, epochs=1, batch_size=8, device="cpu", seed=3)
    with seeded(3):
        assert seen[-8:] == [float(torch.rand(())) for _ in range(8)]


# ---- one logit


@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 1, 3)])
def test_one_logit_is_binary_cross_entropy(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    z, taught = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    wanted = (*shape[:1], *shape[2:])
    labels = torch.tensor([0, 1, 1, 0, 1, 0]).reshape(wanted)
    flat, teacher, hard = z.reshape(wanted), taught.reshape(wanted), labels.float()
    smooth = hard * 0.8 + 0.1
    bce = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(class_logits(z).softmax(1)[:, 1], torch.sigmoid(flat))
    for smoothing, target in ((0.0, hard), (0.2, smooth)):
        got = Classification(label_smoothing=smoothing).loss(z, labels)
        assert float(got) == pytest.approx(float(bce(flat, target)), rel=1e-6)
    # KL = cross-entropy on softened probabilities less the teacher's own entropy
    soft = torch.sigmoid(teacher / 4)
    divergence = bce(flat / 4, soft) - bce(teacher / 4, soft)
    got = Classification(temperature=4).divergence(z, taught)
    assert float(got) == pytest.approx(float(16 * divergence), rel=1e-5)


def test_the_gradient_of_one_logit_is_sigmoid_less_label() -> None:
    z = torch.tensor([[40.0], [-40.0], [0.5]], requires_grad=True)
    Classification(label_smoothing=0).loss(z, torch.tensor([0, 0, 1])).backward()
    expected = torch.tensor([[1.0], [0.0], [1 / (1 + math.exp(-0.5)) - 1]]) / 3
    assert z.grad is not None and torch.allclose(z.grad, expected, atol=1e-7)


def test_accuracy_of_one_logit_goes_by_its_sign() -> None:
    z, labels = torch.tensor([[-0.1], [0.2], [5.0], [-3.0], [0.0]]), torch.tensor([0, 1, 0, 1, 0])
    assert accuracy(nn.Identity(), TensorDataset(z, labels)) == 3 / 5
    assert accuracy(nn.Flatten(0), TensorDataset(z, labels)) == 3 / 5
    assert reading(labels, z) == ("one output: taken for the logit of class 1 against class 0",)


def test_one_logit_learns() -> None:
    x = inputs(256)
    source, model = TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long()), dense(1)
    assert accuracy(model, source) < 0.8
    finetune_(
        model, source, teacher=copy.deepcopy(model), distill_weight=0.1, epochs=8, batch_size=32, device="cpu"
    )
    assert accuracy(model, source) > 0.95


# ---- pixels without a class


def maps() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    logits, taught = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    labels = torch.randint(3, (2, 4, 5), generator=generator)
    labels[0, :2], labels[1, 0, 3], labels[1, 3] = 255, -100, 255
    return logits, labels, taught


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_pixels_leave_the_loss(smoothing: float) -> None:
    logits, labels, taught = maps()
    kept = (labels >= 0) & (labels < 3)
    assert int(kept.sum()) == 40 - 10 - 1 - 5
    task = Segmentation(label_smoothing=smoothing, temperature=2)
    loss = functional.cross_entropy(logits.movedim(1, -1)[kept], labels[kept], label_smoothing=smoothing)
    assert float(task.loss(logits, labels)) == pytest.approx(float(loss), rel=1e-5)
    # a teacher knows what they are
    p, q = (taught / 2).log_softmax(1), (logits / 2).log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1).mean()
    assert float(task.divergence(logits, taught)) == pytest.approx(float(4 * divergence), rel=1e-5)


def test_ignored_pixels_leave_the_accuracy() -> None:
    logits, labels, _ = maps()
    kept = (labels >= 0) & (labels < 3)
    right = (logits.argmax(1) == labels)[kept]
    source = TensorDataset(logits, labels)
    assert accuracy(nn.Identity(), source, batch_size=1) == int(right.sum()) / 24
    with pytest.raises(MintError, match="No pixel to measure accuracy on has a class"):
        accuracy(nn.Identity(), TensorDataset(logits, torch.full((2, 4, 5), 255)))
    assert reading(labels, logits) == (
        "pixels labelled 255 or -100 are ignored, in the loss and in what is measured",
    )


def test_255_is_a_class_of_a_network_with_more_than_255() -> None:
    labels = torch.tensor([[[255, -100, 3]]])
    assert class_numbers(labels, outputs=255).tolist() == [[[-100, -100, 3]]]
    assert fitted(labels, torch.zeros(1, 256, 1, 3)).tolist() == [[[255, -100, 3]]]
    assert reading(labels, torch.zeros(1, 256, 1, 3))[0].startswith("pixels labelled -100 are ignored")
    bytes_ = torch.tensor([[[255, 156, 3]]], dtype=torch.uint8)
    assert class_numbers(bytes_).tolist() == [[[-100, 156, 3]]]


def test_a_batch_without_a_class_changes_no_weight() -> None:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.full((4, 6, 6), 255)
    model = nn.Conv2d(3, 2, 1)
    before = state(model)
    assert one_step(model, TensorDataset(images, labels), 4, weight_decay=0.0) == 0
    assert torch.equal(model.weight, before["weight"])


@pytest.mark.parametrize("outputs", [1, 2])
def test_segmentation_learns_from_maps_with_ignored_pixels(outputs: int) -> None:
    images = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0).to(torch.uint8)
    labels[:, :2] = 255
    with seeded(0):
        model = nn.Conv2d(3, outputs, 1)
    source = TensorDataset(images, labels)
    finetune_(model, source, validation=source, epochs=20, batch_size=8, lr=0.5, device="cpu")
    assert accuracy(model, source) > 0.95


def test_python_random_is_not_drawn_from() -> None:
    random.seed(0)
    before = random.getstate()
    finetune_(dense(), TensorDataset(inputs(), torch.arange(64) % 3), epochs=1, device="cpu")
    assert random.getstate() == before
