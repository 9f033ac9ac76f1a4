"""Input features that a layer drops by itself: which layers may, which features go, and what is left."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import Chain, OneDimensional
from torch import Tensor, nn

from mint_compress.checkpoints.loading import load
from mint_compress.compression import compress
from mint_compress.errors import MintError
from mint_compress.graph.finding import find_groups
from mint_compress.graph.input_groups import inputs_read, unselectable
from mint_compress.inspecting import inspect_model
from mint_compress.nn.input_selection import Selecting
from mint_compress.planning.choices import make_plan
from mint_compress.planning.search import plan as choose
from mint_compress.repair.compensation import compensate_
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.scores import score
from mint_compress.settings import Budget
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.zoo import BUILDERS


def perceptron(inputs: int = 12, hidden: int = 8, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()


def without(model: nn.Module, example: Tensor, layer: str, gone: list[int]) -> tuple[nn.Module, PruningPlan]:
    """The network whose layer does not read these inputs any more, and the plan for it."""
    groups = find_groups(model, example, prune_inputs=[layer])
    width = groups[-1].width
    plan = make_plan(groups, {f"inputs of {layer}": np.isin(np.arange(width), gone)}, asked=0.1)
    return prune_(copy.deepcopy(model), plan), plan


@torch.no_grad()
def moved(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    return float((one(x) - other(x)).abs().max())


def test_only_the_layers_named_get_a_group_of_their_own() -> None:
    model, example = perceptron(), torch.zeros(1, 12)
    assert [g.name for g in find_groups(model, example)] == ["2", "0"]
    *others, group = find_groups(model, example, prune_inputs=["0"])
    assert [g.name for g in others] == ["2", "0"]
    assert (group.name, group.width, group.prunable, group.producers) == ("inputs of 0", 12, True, ())
    assert [(m.layer, m.side) for m in group.consumers] == [("0", "in")]
    assert type(model[0]) is nn.Linear  # what was tried on the way went into a copy


def test_what_may_not_select_is_refused_with_the_reason() -> None:
    model = Chain()
    example = torch.zeros(1, 3, 8, 8)
    reasons = unselectable(model, find_groups(model, example))
    free = [name for name, why in reasons.items() if why is None]
    assert len(free) == 1 and free[0] == next(iter(reasons))
    taken = next(name for name, why in reasons.items() if why)
    with pytest.raises(MintError, match=f"the inputs of {taken} go with the channels of "):
        find_groups(model, example, prune_inputs=[taken])
    with pytest.raises(MintError, match=f"names no convolution or linear layer.*: {free[0]}\\."):
        find_groups(model, example, prune_inputs=[free[0], "nothing*"])
    # a pattern that matches layers of both kinds means those that can
    assert find_groups(model, example, prune_inputs=["*"])[-1].name == f"inputs of {free[0]}"


def test_tied_wide_and_unreached_layers_say_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.wide = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(9000, 2)
            self.idle, self.grouped = nn.Linear(6, 6), nn.Conv1d(6, 6, 1, groups=2)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            wide = self.wide(x.repeat(1, 1500))
            return torch.cat([self.one(x), self.other(x), wide, self.grouped(x[:, :, None])[:, :, 0]], 1)

    model = Odd()
    reasons = unselectable(model, find_groups(model, torch.zeros(1, 6)))
    assert reasons == {
        "one": "one shares a parameter with other",
        "other": "other shares a parameter with one",
        "wide": "wide has 9,000 inputs, not 2 to 8,192",
        "idle": "the forward pass does not reach idle",
        "grouped": "grouped, a Conv1d, is not a plain layer without channel groups",
    }


def test_a_network_that_fixes_the_width_fails_its_trial() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.fc.weight.t()

    group = find_groups(Own(), torch.zeros(1, 20), prune_inputs=["fc"])[-1]
    assert group.name == "inputs of fc" and not group.prunable
    assert group.reason is not None and group.reason.startswith("its channels cannot be removed: ")


@pytest.mark.parametrize("seed", range(3))
def test_removal_is_what_ignoring_the_features_gives(seed: int) -> None:
    model, x = perceptron(seed=seed), torch.randn(5, 12)
    gone = np.random.default_rng(seed).permutation(12)[:7].tolist()
    pruned, plan = without(model, x, "0", gone)
    assert pruned[0].weight.shape == (8, 5)
    assert plan.parameters == (12 * 8 + 8 + 8 * 3 + 3, 5 * 8 + 8 + 8 * 3 + 3)
    assert sum(p.numel() for p in pruned.parameters()) == plan.parameters[1]
    y = x.clone()
    y[:, gone] = 0
    torch.testing.assert_close(pruned(x), model(y))
    assert torch.equal(pruned(x), pruned(x.index_fill(1, torch.tensor(gone), 99.0)))


def test_a_signal_loses_sensors() -> None:
    model = OneDimensional().eval()
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv1d))
    torch.manual_seed(0)
    setattr(model, name, nn.Conv1d(16, model.get_submodule(name).out_channels, 3, padding=1))
    x = torch.randn(2, 16, 32)
    pruned, _ = without(model, x, name, [0, 3, 15])
    torch.testing.assert_close(pruned(x), model(x.index_fill(1, torch.tensor([0, 3, 15]), 0)))


def test_constant_copied_and_unused_features_go_first_and_are_made_up_for() -> None:
    torch.manual_seed(1)
    model = perceptron(6)
    x = torch.randn(512, 6)
    x[:, 2] = 0.7  # says nothing
    x[:, 3] = x[:, 0]  # says nothing beside 0
    with torch.no_grad():
        model[0].weight[:, 5] = 0  # is not listened to
    groups = find_groups(model, x[:1], prune_inputs=["0"])
    calibration = calibrate(model, groups, [x], seed=0)
    nats = score(groups, calibration).nats["inputs of 0"].numpy()
    first = np.argsort(nats, kind="stable")[:3]
    assert set(first) in ({0, 2, 5}, {2, 3, 5})
    assert nats[first].max() < 1e-2 * np.delete(nats, first).min()

    mask = np.isin(np.arange(6), first)
    plan = make_plan(groups, {"inputs of 0": mask}, asked=0.1)
    pruned = prune_(copy.deepcopy(model), plan)
    assert moved(pruned, model, x) > 0.05
    (repair, _) = compensate_(pruned, model, plan, [x], seed=0)
    assert repair.layer == "0" and repair.after < 1e-4 < repair.before
    # the constant went into the bias, and the copy's weights to the one that stays
    assert moved(pruned, model, x) < 0.02


def test_one_budget_is_shared_with_the_other_groups() -> None:
    torch.manual_seed(0)
    model = perceptron(40, 16)
    x = torch.randn(256, 4) @ torch.randn(4, 40)  # 40 features of 4 degrees of freedom
    groups = find_groups(model, x[:1], prune_inputs=["0"])
    plan = choose(groups, score(groups, calibrate(model, groups, [x])), Budget(0.7, round_to=1))
    kept = {cut.group: len(cut.kept) for cut in plan.groups}
    assert 0.7 <= plan.removed < 0.75
    assert 4 <= kept["inputs of 0"] <= 12 and kept["0"] > 8


def test_a_second_pass_counts_among_the_features_that_are_left() -> None:
    model, x = perceptron(), torch.randn(5, 12)
    once, _ = without(model, x, "0", [1, 2, 3])
    twice, _ = without(once, x, "0", [0, 8])  # features 0 and 11
    assert isinstance(twice[0], Selecting) and twice[0].selected.tolist() == [4, 5, 6, 7, 8, 9, 10]
    torch.testing.assert_close(twice(x), model(x.index_fill(1, torch.tensor([0, 1, 2, 3, 11]), 0)))
    # and hidden channels of a network that selects go as those of any other
    groups = find_groups(once, x)
    assert [(g.name, g.prunable) for g in groups] == [("0", True), ("2", False)]


def test_what_a_selecting_layer_reads_stays_as_it_is() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    x = torch.randn(4, 6)
    groups = find_groups(body, x, ignore=["0"], prune_inputs=["2"])
    plan = make_plan(groups, {"inputs of 2": np.arange(20) % 2 == 0}, asked=0.1)
    pruned = prune_(body, plan)
    found = {g.name: g.reason for g in find_groups(pruned, x)}
    assert found["0"] == "a layer selects among its channels (2)"
    assert found["2"] is None


def test_a_table_of_numbers_loses_columns_and_the_files_say_so(tmp_path: Path) -> None:
    model = perceptron(30, 16)
    out = tmp_path / "small.onnx"
    settings = {"ratio": 0.6, "round_to": 1, "epochs": 0, "bench_seconds": 0.1, "device": "cpu"}
    small, report = compress(model, "toydata:tables", output=out, prune_inputs=["0"], **settings)
    reads = len(small[0].selected)
    assert reads == small[0].in_features < 30
    assert f"0 reads {reads} of 30 inputs, which a Gather selects in the export" in report.notes
    assert report.receipt.modules == report.receipt.export == report.parameters.after
    graph = onnx.load(out).graph
    assert graph.node[0].op_type == "Gather"
    weights = [tuple(t.dims) for t in graph.initializer if len(t.dims) == 2]
    assert sorted(min(w) for w in weights) == sorted((min(reads, small[0].out_features), 3))
    x = torch.randn(4, 30)
    again = load(out.with_suffix(".safetensors"), builder=lambda: perceptron(30, 16))
    assert torch.equal(again(x), small(x))

    plan = tmp_path / "other.onnx"
    compress(model, "toydata:tables", output=plan, prune_inputs=["0"], dry_run=True, **settings)
    planned, _ = compress(
        model, "toydata:tables", plan=plan.with_suffix(".plan.json"), device="cpu", epochs=0
    )
    assert torch.equal(planned(x), small(x))


def test_it_is_pointed_out_where_it_would_help() -> None:
    model = BUILDERS["mlp"](hidden=(30, 20))
    groups = find_groups(model, torch.zeros(1, 1, 28, 28))
    small = prune_(copy.deepcopy(model), make_plan(groups, {"layers.0": np.arange(30) > 9}, asked=0.5))
    (note,) = inputs_read(model, small, groups)
    assert note == (
        "layers.0 holds 95% of the parameters left and reads all 784 inputs; "
        "--prune-inputs layers.0 lets it drop some"
    )
    (note,) = inspect_model(model, input_shape=(1, 28, 28)).notes
    assert note.startswith("layers.0 holds 97% of the parameters and reads all 784 inputs; --prune-inputs ")
    assert inspect_model(model, input_shape=(1, 28, 28), prune_inputs=["layers.0"]).notes == ()
    scores = score(groups, calibrate(model, groups, [torch.randn(8, 1, 28, 28)]))
    with pytest.raises(
        MintError, match=r"raise --upper-limit; --prune-inputs layers\.0 lets inputs go as well"
    ):
        choose(groups, scores, Budget(0.99))
    # an image has three channels: nothing to choose from
    chain = Chain()
    assert inputs_read(chain, chain, find_groups(chain, torch.zeros(1, 3, 8, 8))) == ()
