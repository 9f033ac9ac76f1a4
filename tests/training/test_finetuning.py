"""Training, on networks small enough to know the answer."""

# mypy: disable-error-code="arg-type,union-attr,index,operator,no-untyped-call"

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mint_compress
from mint_compress.data.datasets import ArrayDataset
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError
from mint_compress.nn.contexts import seeded
from mint_compress.nn.devices import device_of
from mint_compress.reporting.records import Metric
from mint_compress.training.epochs import EpochResult
from mint_compress.training.evaluation import accuracy
from mint_compress.training.finetuning import finetune_
from mint_compress.training.schedule import one_cycle


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(128, 10),
        )


def blobs(count: int, classes: int = 10) -> ArrayDataset:
    """Images whose class is a fixed pattern under little noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(classes, 1, 8, 8, generator=generator)
    labels = torch.arange(count) % classes
    return ArrayDataset(patterns[labels] + 0.3 * torch.randn(count, 1, 8, 8, generator=generator), labels)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_learns_and_reports_every_epoch() -> None:
    model, data = network(), blobs(160)
    calls: list[tuple[str, int, int]] = []
    results = finetune_(
        model,
        data,
        validation=data,
        epochs=3,
        batch_size=16,
        device="cpu",
        progress=lambda *a: calls.append(a),
    )
    assert [r.epoch for r in results] == [1, 2, 3]
    assert results[2].loss < results[0].loss
    assert results[2].validation == accuracy(model, data)
    assert results[2].validation > 0.95
    assert calls == [("fine-tuning", step, 30) for step in range(1, 31)]
    assert (
        str(EpochResult(1, 0.5, 0.25, 2, Metric("accuracy", "%")))
        == "epoch 1: loss 0.5000, validation 25.00 %, 2.0 s"
    )


def test_two_runs_are_equal_bit_for_bit_and_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    outcomes = []
    for seed in (0, 0, 1):
        model = network(dropout=0.2)
        finetune_(model, blobs(50), epochs=2, batch_size=16, device="cpu", seed=seed)
        outcomes.append(state(model))
    assert same(outcomes[0], outcomes[1])
    assert not same(outcomes[0], outcomes[2])
    assert torch.equal(before, torch.get_rng_state())


def test_the_order_of_a_shuffling_loader_follows_the_seed() -> None:
    outcomes = []
    for _ in range(2):
        model = network()
        loader = DataLoader(blobs(50), batch_size=16, shuffle=True)
        assert len(finetune_(model, loader, epochs=1, batch_size=2, device="cpu")) == 1
        outcomes.append(state(model))
    assert same(*outcomes)


def test_a_teacher_draws_the_student_towards_it() -> None:
    data, teacher = blobs(160), network(1)
    # it calls every class by the name of the next one
    odd = ArrayDataset(data.images, (data.labels + 1) % 10)
    finetune_(teacher, odd, epochs=3, batch_size=16, device="cpu")
    teacher.train()
    before = state(teacher)

    def divergence(student: nn.Module) -> float:
        images, _ = data.gather(torch.arange(160))
        with torch.no_grad():
            p, q = (m(images).log_softmax(1) for m in (copy.deepcopy(teacher).eval(), student.eval()))
        return float((p.exp() * (p - q)).sum(1).mean())

    students = {weight: network(2) for weight in (0.0, 1.0)}
    start = divergence(students[0.0])
    for weight, student in students.items():
        finetune_(
            student, data, teacher=teacher, distill_weight=weight, epochs=3, batch_size=16, device="cpu"
        )
    assert divergence(students[1.0]) < 0.1 * start
    assert divergence(students[0.0]) > 0.5 * start
    assert accuracy(students[0.0], data) > 0.95
    assert teacher.training
    assert same(before, state(teacher))
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_the_teacher_alone_needs_no_true_labels() -> None:
    """With all the weight on the teacher, the labels change nothing."""
    data, teacher = blobs(32), network(1).eval()
    wrong = ArrayDataset(data.images, data.labels.flip(0))
    outcomes = []
    for train in (data, wrong):
        student = network(2)
        finetune_(student, train, teacher=teacher, distill_weight=1.0, epochs=1, batch_size=8, device="cpu")
        outcomes.append(state(student))
    assert same(*outcomes)


def test_no_epochs_change_nothing() -> None:
    model = network()
    before = state(model)
    assert finetune_(model, blobs(20), epochs=0, device="cpu") == []
    assert same(before, state(model))
    assert not model.training


def test_flags_mode_and_gradients_are_restored() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    finetune_(model, blobs(20), epochs=1, device="cpu")
    assert not torch.equal(before, model[0].weight)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert "forward" not in vars(model)


class Seen(nn.Module):
    """Notes whether what passes has its channels last, and may insist that it has not."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.flat, self.seen = flat, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return x.view(len(x), -1) if self.flat else x.flatten(1)


@pytest.mark.parametrize("of", ["student", "teacher", "none"])
def test_channels_come_last_unless_a_forward_pass_fails_so(of: str) -> None:
    model, teacher = network(), network(1)
    model[4], teacher[4] = Seen(flat=of == "student"), Seen(flat=of == "teacher")
    finetune_(model, blobs(20), teacher=teacher, epochs=1, batch_size=10, device="cpu")
    assert model[4].seen == [of == "none"] * 2
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("asked", [None, "no", "bf16", "fp16"])
def test_a_cpu_computes_in_bf16_only_when_asked(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if asked:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    model = network()
    seen: set[torch.dtype] = set()
    model[0].register_forward_hook(lambda layer, given, out: seen.add(out.dtype) if layer.training else None)
    finetune_(model, blobs(100), epochs=3, batch_size=20, device="cpu")
    assert seen == {torch.bfloat16 if asked == "bf16" else torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracy(model, blobs(100), device="cpu") > 0.9


def test_volumes_are_trained_on_as_they_are() -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3)), nn.Flatten(), nn.LazyLinear(10)
    )
    model(blobs(2).gather(torch.arange(2))[0])
    [result] = finetune_(model, blobs(20), epochs=1, device="cpu")
    assert math.isfinite(result.loss)


@pytest.mark.parametrize("count", [3, 17, 33])
def test_a_last_batch_of_one_and_small_sets_train(count: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    results = finetune_(model, blobs(count), epochs=2, batch_size=16, device="cpu")
    assert all(math.isfinite(r.loss) for r in results)
    # 3 images are one batch; of 17 and 33 the last image is left out
    assert model[2].num_batches_tracked == 2 * max(1, count // 16)


def test_gradients_are_clipped_and_small_parameters_do_not_decay() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = state(model)
    finetune_(
        model,
        blobs(16),
        epochs=1,
        batch_size=16,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        max_grad_norm=1e-3,
        device="cpu",
    )
    moved = torch.cat([(v - before[k]).flatten() for k, v in state(model).items()])
    assert float(moved.norm()) == pytest.approx(1e-3 * one_cycle(0, 1), rel=1e-3)

    model.load_state_dict(before)
    finetune_(
        model,
        blobs(16),
        epochs=1,
        batch_size=16,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.5,
        max_grad_norm=1e-12,
        device="cpu",
    )
    assert torch.allclose(model[1].weight, before["1.weight"] * (1 - 0.5 * one_cycle(0, 1)), atol=1e-6)
    assert torch.allclose(model[1].bias, before["1.bias"], atol=1e-6)


def test_a_loss_that_explodes_names_the_learning_rate() -> None:
    images = torch.full((32, 1, 8, 8), 1e38)
    data = ArrayDataset(images, torch.arange(32) % 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(MintError, match=r"no longer finite at step 1 with lr 0\.5\. Try --lr 0\.1\."):
        finetune_(model, data, epochs=1, batch_size=8, lr=0.5, device="cpu")
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_ctrl_c_passes_through_and_restores() -> None:
    model = network()

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_(model, blobs(40), epochs=1, batch_size=8, device="cpu", progress=interrupt)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs must be 0 or more, got -1"),
        ({"lr": 0.0}, r"lr must be above 0, got 0\.0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"batch_size": 1}, "batch_size must be 2 or more"),
        ({"device": "gpu"}, "Unknown device 'gpu'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(MintError, match=message):
        finetune_(network(), blobs(20), **options)  # type: ignore[arg-type]


def test_too_little_to_train_on() -> None:
    with pytest.raises(MintError, match="at least 2 training images"):
        finetune_(network(), blobs(1), epochs=1, device="cpu")
    with pytest.raises(MintError, match="no parameters to train"):
        finetune_(nn.Flatten(), blobs(20), epochs=1, device="cpu")


def test_an_accelerator_of_the_caller_is_left_alone() -> None:
    """Nor does it matter to a training: not where it computes, and not in which precision."""
    accelerate = pytest.importorskip("accelerate")
    before = network(), network()
    finetune_(before[0], blobs(20), epochs=1, device="cpu")
    mine = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    told = mine.device, mine.mixed_precision, mine.num_processes, str(mine.state)
    finetune_(before[1], blobs(20), epochs=1, device="cpu")
    assert (mine.device, mine.mixed_precision, mine.num_processes, str(mine.state)) == told
    assert same(state(before[0]), state(before[1]))


def test_digits_are_learnt() -> None:
    data = load_data("digits", input_shape=(1, 8, 8))
    model = network()
    finetune_(model, data.augmented, epochs=4, lr=0.1, batch_size=32, device="cpu")
    assert accuracy(model, data.test) > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_a_gpu_gives_the_model_back_as_it_came() -> None:
    model, teacher = network(), network(1)
    results = finetune_(
        model, blobs(160), teacher=teacher, validation=blobs(160), epochs=3, batch_size=16, device="cuda"
    )
    assert device_of(model) == device_of(teacher) == torch.device("cpu")
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
    assert all(math.isfinite(r.loss) for r in results)
    assert accuracy(model, blobs(160), device="cuda") == accuracy(model, blobs(160))


def test_the_former_name_still_works_and_says_the_new_one() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"^mint_compress\.finetune is now called finetune_$"
    ) as caught:
        former = mint_compress.finetune
    assert former is finetune_ is mint_compress.finetune_
    assert caught[0].filename == __file__
    assert "finetune" not in mint_compress.__all__ and "finetune" not in dir(mint_compress)


# ---- going on after an interruption


class Killed(Exception):
    pass


def shuffled() -> DataLoader:
    """With a generator of its own, which no seed of ours reaches."""
    return DataLoader(blobs(50), 16, shuffle=True, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("data", [lambda: blobs(50), shuffled], ids=["dataset", "loader"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path, data: Any) -> None:
    whole, halted = network(dropout=0.2), network(dropout=0.2)
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 16, "device": "cpu", "seed": 3}
    expected = finetune_(whole, data(), **settings)
    kept = tmp_path / "state"

    def kill(stage: str, done: int, total: int) -> None:
        assert total == 16
        if done == 11:  # in the third epoch
            raise Killed

    with pytest.raises(Killed):
        finetune_(halted, data(), checkpoint=kept, progress=kill, **settings)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    halted.load_state_dict(network(1, dropout=0.2).state_dict())  # the file holds the weights as well
    steps: list[int] = []
    results = finetune_(
        halted, data(), checkpoint=kept, progress=lambda _, done, __: steps.append(done), **settings
    )
    assert steps[0] == 9
    assert same(state(halted), state(whole))
    assert [r.loss for r in results] == [r.loss for r in expected]
    assert not list(tmp_path.iterdir())


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "state"

    def kill(stage: str, done: int, total: int) -> None:
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        finetune_(network(), blobs(50), checkpoint=kept, progress=kill, epochs=2, batch_size=16, device="cpu")
    with pytest.raises(MintError, match="of a training with other settings"):
        finetune_(network(), blobs(50), checkpoint=kept, epochs=3, batch_size=16, device="cpu")
    with pytest.raises(MintError, match="is of another network"):
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        finetune_(other, blobs(50), checkpoint=kept, epochs=2, batch_size=16, device="cpu")
    torch.save({"settings": torch.load(kept)["settings"]}, kept)
    with pytest.raises(MintError, match="is no state of a training"):
        finetune_(network(), blobs(50), checkpoint=kept, epochs=2, batch_size=16, device="cpu")
    torch.save({}, kept)
    with pytest.raises(MintError, match="is no state of a training"):
        finetune_(network(), blobs(50), checkpoint=kept, epochs=2, batch_size=16, device="cpu")
    kept.write_bytes(b"something else")
    with pytest.raises(MintError, match="is no state of a training"):
        finetune_(network(), blobs(50), checkpoint=kept, epochs=2, batch_size=16, device="cpu")
    assert kept.read_bytes() == b"something else"
