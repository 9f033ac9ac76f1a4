"""compress() as a library: what it gives back, what it writes, what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Chain, Mixer, Residual, build, images
from torch import nn
from toydata import CLASSES, SHAPE, arrays, task

from mint_compress import CheckFailed, MintError, PruningPlan, Report, compress, load
from mint_compress.graph.finding import find_groups
from mint_compress.nn.counting import module_macs, parameters
from mint_compress.planning.choices import make_plan
from mint_compress.reaching.chosen import little_computed
from mint_compress.recovery import repaired_from_few, unrepaired
from mint_compress.repair.compensation import Repair
from mint_compress.reporting.records import Counts, ReceiptCounts, Share, Stages
from mint_compress.surgery.pruning_plan import LayerCut
from mint_compress.training.evaluation import accuracy
from mint_compress.training.finetuning import finetune_

QUICK: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def chain() -> nn.Module:
    """A chain that has learnt the task."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Chain(16, 16)
    finetune_(model, arrays().train, epochs=25, lr=0.1, batch_size=16, device="cpu", seed=0)
    assert accuracy(model, arrays().test) > 0.9
    return model.eval()


def unchanged(model: nn.Module) -> Callable[[], None]:
    """Note everything about a module; the result asserts that it is still so."""
    tensors = {n: (t, t.clone()) for n, t in model.state_dict(keep_vars=True).items()}
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]

    def check() -> None:
        now = model.state_dict(keep_vars=True)
        assert now.keys() == tensors.keys()
        assert all(now[n] is t and torch.equal(t, value) for n, (t, value) in tensors.items())
        assert all(t.device.type == "cpu" for t in now.values())
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == grads
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    return check


def test_a_module_and_data_give_a_smaller_module_and_a_report(chain: nn.Module) -> None:
    check = unchanged(chain)
    small, report = compress(chain, arrays(), ratio=0.5, round_to=1, epochs=6, lr=0.05, device="cpu")
    check()
    assert isinstance(small, Chain) and isinstance(report, Report)
    assert not any(m.training for m in small.modules())
    before, after = parameters(chain), parameters(small)
    assert report.parameters == Counts(before, after)
    assert report.ratio == Share(0.5, 1 - after / before)
    assert 0.5 <= report.ratio.removed <= 0.56  # a channel of conv1 is up to 5 % here
    assert small.conv1.out_channels == small.bn1.num_features == small.conv2.in_channels
    assert small.conv2.out_channels == small.fc.in_features
    assert report.accuracy.original == accuracy(chain, arrays().test)
    assert report.accuracy.last == accuracy(small, arrays().test)
    assert report.accuracy.last > 0.85
    assert None not in (report.accuracy.pruned, report.accuracy.repaired, report.validation.compressed)
    assert report.model == "Chain" and report.plan is not None
    # nothing was exported, so nothing is said about it
    assert report.receipt is report.parity is report.latency_ms is report.speedup is None
    assert report.sha256 == {}


def test_a_share_of_the_macs_can_be_asked_for(chain: nn.Module) -> None:
    settings = {k: v for k, v in QUICK.items() if k != "ratio"}
    _, report = compress(chain, arrays(), macs_ratio=0.5, **settings)
    share = 1 - report.macs.after / report.macs.before
    assert (report.plan["asked"], report.plan["asked_macs"]) == (None, 0.5)
    assert 0.5 <= share < 0.6 and report.ratio.asked is None
    lines = {line[:12].strip(): line for line in str(report).splitlines()}
    assert "(asked 50.00 %) (" in lines["MACs"] and "asked" not in lines["Parameters"]
    groups = find_groups(chain, torch.zeros(1, 3, 6, 6))
    name = next(g.name for g in groups if g.prunable)
    plan = make_plan(groups, {name: np.arange(16) < 8}, asked=None, asked_macs=0.3)
    assert compress(chain, arrays(), plan=plan, epochs=0, device="cpu")[1].macs.after == plan.macs[1]
    for by in (-1, 1):
        wrong = replace(plan, macs=(plan.macs[0], plan.macs[1] + by))
        with pytest.raises(CheckFailed, match=r"The network does [\d,]+ MACs; the plan, of MACs, predicted "):
            compress(chain, arrays(), plan=wrong, epochs=0, device="cpu")
    with pytest.raises(MintError, match="No ratio given"):
        compress(chain, arrays(), **settings)


def test_a_network_that_mixes_places_may_do_less_than_promised() -> None:
    _, report = compress(Mixer().eval(), macs_ratio=0.3, epochs=0, round_to=1, input_shape=(3, 6, 6))
    assert report.macs.after <= report.plan["macs"][1] <= 0.7 * report.macs.before


def test_macs_of_attention_count_and_are_kept_to() -> None:
    model, x = build("transformer"), images("transformer")
    options = {"epochs": 0, "round_to": 1, "input_shape": (3, 6, 6), "device": "cpu"}
    small, report = compress(model, macs_ratio=0.4, **options)
    before, after = (module_macs(m, x) for m in (model, small))
    assert report.macs == Counts(before.total, after.total)
    assert report.plan["macs"] == (before.total, after.total)
    assert sum(before.products.values()) == 1200 and after.total <= 0.6 * before.total
    assert not any("could not predict" in note for note in report.notes)
    # a plan from before products were counted holds the MACs of the layers alone
    plan = PruningPlan.from_json(json.dumps(report.plan))
    earlier = replace(plan, macs=tuple(sum(m.layers.values()) for m in (before, after)))
    assert compress(model, plan=earlier, **options)[1].macs == report.macs
    for macs in ((plan.macs[0], plan.macs[1] + 1), (earlier.macs[0], earlier.macs[1] - 1)):
        with pytest.raises(CheckFailed, match=r"The network does [\d,]+ MACs; the plan, of MACs, predicted "):
            compress(model, plan=replace(plan, macs=macs), **options)


class MixesInside(nn.Linear):
    """A linear layer that multiplies tokens with a constant before it computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mixing = torch.eye(input.shape[1]).flip(0).expand(len(input), -1, -1)
        return super().forward(torch.bmm(mixing, input))


def test_products_that_cannot_be_predicted_are_named_in_the_report() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), MixesInside(8, 6), nn.GELU(), nn.Linear(6, 3)).eval()
    _, report = compress(model, macs_ratio=0.2, epochs=0, round_to=1, input_shape=(4, 5), device="cpu")
    assert report.macs.before == 4 * (40 + 48 + 18) + 4 * 4 * 8
    assert report.macs.after <= report.plan["macs"][1] <= 0.8 * report.macs.before
    said = "128 MACs of products of activations are counted, but the plan could not predict"
    assert f"{said} how many of them go: 2" in report.notes


def test_shares_of_both_can_be_asked_for_at_once(chain: nn.Module) -> None:
    settings = {k: v for k, v in QUICK.items() if k != "ratio"}
    _, report = compress(chain, arrays(), ratio=0.3, macs_ratio=0.5, **settings)
    assert report.ratio.asked == 0.3 and report.ratio.removed >= 0.3
    assert report.macs.after <= 0.5 * report.macs.before
    lines = {line[:12].strip(): line for line in str(report).splitlines()}
    assert "(asked 50.00 %) (" in lines["MACs"] and lines["Parameters"].endswith("(asked 30.00 %)")


def test_modes_devices_and_global_randomness_stay(chain: nn.Module) -> None:
    model = build("residual").train()
    assert isinstance(model, Residual)
    model.a.eval()
    model.stem.weight.requires_grad_(False)
    check, state = unchanged(model), torch.get_rng_state()
    small, _ = compress(model, None, input_shape=(3, 6, 6), calibration_images=16, **QUICK)
    check()
    assert torch.equal(torch.get_rng_state(), state)
    assert not small.get_parameter("stem.weight").requires_grad
    assert small(images("residual")).shape == (2, 3)


def test_without_an_output_nothing_is_written(
    chain: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compress(chain, arrays(), **QUICK)
    compress(chain, arrays(), dry_run=True, **QUICK)
    assert os.listdir(tmp_path) == []


def test_with_an_output_the_files_hold_what_was_returned(chain: nn.Module, tmp_path: Path) -> None:
    small, report = compress(
        chain, arrays(), output=tmp_path / "small.onnx", provider="cpu", bench_seconds=0.1, **QUICK
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        "small.onnx",
        "small.verify.npz",
        "small.safetensors",
        "small.json",
        "small.html",
    }
    assert json.loads((tmp_path / "small.json").read_text()) == report.to_dict()
    assert report.receipt == ReceiptCounts(*[parameters(small)] * 3)
    loaded = load(tmp_path / "small.safetensors", builder=lambda: Chain(16, 16))
    x = task(8, seed=9)[0]
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))


def test_a_spec_of_the_users_own_loaders(chain: nn.Module) -> None:
    small, report = compress(chain, "toydata:loaders", **{**QUICK, "epochs": 2})
    assert report.accuracy.original == accuracy(chain, arrays().test)
    assert report.accuracy.finetuned is not None
    assert any(note.startswith("toydata:loaders: 120 train, 40 validation, 80 test") for note in report.notes)
    assert small(task(2, seed=0)[0]).shape == (2, CLASSES)


def test_without_data_there_is_no_accuracy_and_the_shape_must_be_said(chain: nn.Module) -> None:
    _, report = compress(chain, None, input_shape=(3, 6, 6), calibration_images=32, **{**QUICK, "epochs": 5})
    assert report.quality == Stages()
    assert "no data: 3x6x6 noise images, nothing is measured" in report.notes
    with pytest.raises(MintError, match=r"size of the input is not known\. Give --input-shape"):
        compress(build("chain"), None, **QUICK)


def test_a_default_is_capped_and_said_a_number_given_is_not(chain: nn.Module) -> None:
    _, report = compress(chain, arrays(), **QUICK)
    assert "calibration images: 120" in report.notes
    _, report = compress(chain, arrays(), calibration_images=100, **QUICK)
    assert "calibration images: 100" in report.notes
    with pytest.raises(MintError, match=r"121 calibration images were asked for, but .* has 120") as raised:
        compress(chain, arrays(), calibration_images=121, **QUICK)
    assert raised.value.exit_code == 2
    _, report = compress(chain, arrays(), estimator="gmi", **QUICK)
    assert "for gmi, calibration images: 120" in report.notes
    with pytest.raises(MintError, match="124 calibration images were asked for"):
        compress(chain, arrays(), estimator="gmi", samples_per_class=31, **QUICK)


def test_noise_is_worth_no_more_time_than_its_macs_say(
    chain: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    macs = module_macs(chain, torch.zeros(1, 3, 6, 6)).total
    for paid_for, drawn in ((40, 40), (5, 32)):
        monkeypatch.setattr("mint_compress.run.NOISE_MACS", paid_for * macs)
        _, report = compress(chain, None, input_shape=(3, 6, 6), **QUICK)
        assert f"calibration images: {drawn}" in report.notes


def test_stages_that_are_left_out_are_not_measured(chain: nn.Module) -> None:
    _, report = compress(chain, arrays(), **QUICK)
    assert report.accuracy.repaired is not None and report.accuracy.finetuned is None
    bare, report = compress(chain, arrays(), compensate=False, heal_epochs=0, **QUICK)
    assert (report.accuracy.repaired, report.accuracy.healed, report.accuracy.finetuned) == (None,) * 3
    # nothing but removal: every weight is one of the original's
    assert isinstance(bare, Chain) and isinstance(chain, Chain) and report.plan is not None
    kept = {cut["group"]: cut["kept"] for cut in report.plan["groups"]}
    assert torch.equal(bare.conv1.weight, chain.conv1.weight[list(kept["conv1"])])
    assert torch.equal(bare.fc.weight, chain.fc.weight[:, list(kept["conv2"])])


def test_without_distillation_another_network_comes_out(chain: nn.Module) -> None:
    options = {**QUICK, "epochs": 1}
    taught, _ = compress(chain, arrays(), **options)
    alone, report = compress(chain, arrays(), distill=False, **options)
    assert report.accuracy.finetuned is not None
    assert not torch.equal(taught.get_parameter("fc.weight"), alone.get_parameter("fc.weight"))


def test_a_plan_is_applied_as_object_and_as_file(chain: nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    dry, report = compress(chain, arrays(), output=output, dry_run=True, **QUICK)
    assert os.listdir(tmp_path) == ["small.plan.json"] and report.quality == Stages()
    file = tmp_path / "small.plan.json"
    plan = PruningPlan.from_json(file.read_text())
    assert report.plan == plan.to_dict()
    options = {key: value for key, value in QUICK.items() if key != "ratio"}
    direct, _ = compress(chain, arrays(), **QUICK)
    for given in (plan, file, str(file)):
        small, again = compress(chain, arrays(), plan=given, **options)
        assert again.plan == report.plan and again.ratio.asked == 0.4
        assert [p.shape for p in small.parameters()] == [p.shape for p in dry.parameters()]
        for name, tensor in small.state_dict().items():
            assert torch.equal(tensor, direct.state_dict()[name]), name
    with pytest.raises(MintError, match="made for another network"):
        compress(build("residual"), input_shape=SHAPE, plan=plan, **options)


def test_ignored_groups_and_heads_are_listed(chain: nn.Module) -> None:
    _, report = compress(chain, arrays(), ignore=["conv2"], **{**QUICK, "ratio": 0.3})
    reasons = {row.group: row.reason for row in report.left_alone}
    assert "ignore" in reasons["conv2"] and reasons["fc"].startswith("head")
    assert report.plan is not None and {cut["group"] for cut in report.plan["groups"]} == {"conv1"}


def test_progress_names_the_stages_and_ends_each(chain: nn.Module) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert (0 <= done <= total and seen.get(stage, (0, 0))[0] <= done) or stage == "accuracy"
        seen[stage] = (done, total)

    compress(chain, arrays(), progress=progress, **{**QUICK, "epochs": 1})
    assert {"analyse", "calibrate", "score", "accuracy", "repair", "fine-tuning"} <= seen.keys()
    assert all(done == total for done, total in seen.values())


def test_a_network_that_is_no_better_than_chance_is_noted() -> None:
    _, report = compress(build("chain"), arrays(), **QUICK)
    assert any("chance" in note for note in report.notes)


def test_a_layer_that_lost_inputs_and_was_not_repaired_is_named() -> None:
    cut = LayerCut("head", "conv", "in", 0, 4, (1,))
    plan = PruningPlan(0.5, 0.5, (2, 1), (2, 1), (), (cut,), {})
    (note,) = unrepaired(plan, [])
    assert note.startswith("not repaired (") and note.endswith("): head")
    assert unrepaired(plan, [Repair("head", 0.5, 0.1, 1e-3)]) == ()


def test_a_repair_from_few_images_is_told() -> None:
    repairs = [Repair("a", 0.5, 0.1, 1e-3, images=40), Repair("b", 0.5, 0.1, 1e-3, images=100)]
    assert repaired_from_few(repairs, 80) == () and repaired_from_few([], 80) == ()
    (note,) = repaired_from_few(repairs, 100)
    assert note.startswith("some layers were repaired from 40 of the 100 calibration images")


@pytest.mark.parametrize(
    ("macs", "cost", "said"), [(990, "both", True), (990, "macs", False), (800, "both", False)]
)
def test_a_network_that_gets_smaller_and_not_faster_is_noted(macs: int, cost: str, said: bool) -> None:
    plan = PruningPlan(0.75, 0.75, (400, 100), (1000, macs), (), (), {})
    notes = little_computed(plan, cost)
    assert [n.startswith("75% of the parameters go, but 1.0% of the MACs: ") for n in notes] == [True] * said
    assert little_computed(replace(plan, asked_macs=0.01), cost) == ()


class NoBackward(torch.autograd.Function):
    """An operation without a derivative."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.sin()


class Forwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = NoBackward.apply(self.head(self.body(x).relu().mean((2, 3))))
        return y


def test_a_network_without_a_backward_pass_is_scored_and_it_is_said() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Forwards()
    _, report = compress(model, arrays(), **QUICK)
    assert "without a backward pass, all outputs of these layers count alike: head" in report.notes
    with pytest.raises(
        MintError, match=r"^The network cannot be fine-tuned: .* Give epochs=0 \(--epochs 0\)"
    ):
        compress(model, arrays(), **{**QUICK, "epochs": 1})


def test_a_network_whose_forward_pass_keeps_no_gradients_cannot_be_trained_and_it_is_said() -> None:
    class Quiet(Chain):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    _, report = compress(Quiet(16, 16), arrays(), **QUICK)
    assert report.ratio.removed > 0.4
    with pytest.raises(MintError, match="cannot be fine-tuned: its outputs carry no gradient"):
        compress(Quiet(16, 16), arrays(), **{**QUICK, "epochs": 1})


@pytest.mark.parametrize("prune_inputs", [(), ("*",)])
def test_layers_that_share_a_weight_are_counted_once_in_every_place(
    tmp_path: Path, prune_inputs: tuple[str, ...]
) -> None:
    model = build("tied_weights")
    small, report = compress(
        model, input_shape=(3, 12, 12), ratio=0.2, output=tmp_path / "small.onnx", prune_inputs=prune_inputs,
        calibration_images=16, bench_seconds=0.05, device="cpu",
    )  # fmt: skip
    assert small.b.weight is small.a.weight
    assert report.receipt.modules == sum(p.numel() for p in small.parameters())
    assert {row.pair: row.after for row in report.layers}["a - b"] == 0
