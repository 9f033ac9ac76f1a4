"""Channels go physically, and what is left computes what it did without them."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import NETWORKS, Chain, build, images
from surgery import ignoring
from torch import Tensor, nn

from mint_compress.errors import CheckFailed, MintError
from mint_compress.graph.finding import find_groups
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import LayerCut, PruningPlan
from mint_compress.zoo import BUILDERS


def half(
    model: nn.Module, x: Tensor, *, seed: int = 0, left: int | None = None, prune_inputs: tuple[str, ...] = ()
) -> PruningPlan:
    """A plan that takes half of every group, at random, or all but some positions."""
    groups, masks = find_groups(model, x, prune_inputs=prune_inputs), {}
    drawn = np.random.default_rng(seed)
    for group in groups:
        if group.prunable:
            masks[group.name] = np.zeros(group.width, dtype=bool)
            for positions, _ in group.shares:
                gone = len(positions) // 2 if left is None else len(positions) - left
                masks[group.name][drawn.permutation(positions)[:gone]] = True
    return make_plan(groups, masks, asked=0.5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_network_that_ignores_the_channels(name: str, seed: int) -> None:
    model, x = build(name).double(), images(name, 3).double()
    plan = half(model, x, seed=seed)
    wanted = ignoring(model, plan)(x)
    pruned = prune_(copy.deepcopy(model), plan)
    assert parameters(pruned) == plan.parameters[1] < parameters(model)
    torch.testing.assert_close(pruned(x), wanted, atol=1e-12, rtol=1e-10)
    assert not torch.allclose(wanted, model(x), atol=1e-6, rtol=0)  # the channels did matter


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_network_that_ignores_inputs_as_well(name: str) -> None:
    model, x = build(name).double(), images(name, 3).double()
    plan = half(model, x, prune_inputs=("*",))
    assert any(cut.kind == "selection" for cut in plan.cuts)
    wanted = ignoring(model, plan)(x)
    pruned = prune_(copy.deepcopy(model), plan)
    assert parameters(pruned) == plan.parameters[1] < parameters(model)
    torch.testing.assert_close(pruned(x), wanted, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["grouped", "depthwise", "multiplier", "grouped_transposed"])
def test_one_position_left(name: str) -> None:
    """One channel in each channel group: a grouped convolution is then depthwise."""
    model, x = build(name).double(), images(name, 3).double()
    plan = half(model, x, left=1)
    pruned = prune_(copy.deepcopy(model), plan)
    assert parameters(pruned) == plan.parameters[1]
    torch.testing.assert_close(pruned(x), ignoring(model, plan)(x), atol=1e-12, rtol=1e-10)


def test_in_single_precision_too() -> None:
    model = BUILDERS["resnet20_cifar"]().eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plan = half(model, x[:1])
    with torch.no_grad():
        wanted = ignoring(model, plan)(x)
        got = prune_(copy.deepcopy(model), plan)(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_exact_shapes_and_values_of_a_chain() -> None:
    model = build("chain")
    assert isinstance(model, Chain)
    groups = find_groups(model, images("chain"))
    gone = np.array([0, 1, 0, 0, 1, 1], dtype=bool)
    plan = make_plan(groups, {"conv1": gone}, asked=0.3)
    before = copy.deepcopy(model)
    assert prune_(model, plan) is model
    kept = [0, 2, 3]
    assert model.conv1.out_channels == model.bn1.num_features == model.conv2.in_channels == 3
    assert torch.equal(model.conv1.weight, before.conv1.weight[kept])
    assert torch.equal(model.conv2.weight, before.conv2.weight[:, kept])
    assert model.bn1.running_mean is not None and before.bn1.running_mean is not None
    assert torch.equal(model.bn1.running_mean, before.bn1.running_mean[kept])
    assert torch.equal(model.fc.weight, before.fc.weight) and model.conv2.out_channels == 5


def test_what_was_frozen_stays_frozen() -> None:
    model, x = build("residual"), images("residual")
    frozen = {"stem.weight", "a.conv1.weight", "a.bn1.bias", "fc.bias"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    prune_(model, half(model, x))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert all(p.is_leaf for p in model.parameters())


def test_modes_stay_and_it_trains() -> None:
    model, x = build("layer_scale").train(), images("layer_scale")
    model.get_submodule("branch").eval()
    modes = [m.training for m in model.modules()]
    prune_(model, half(model, x))
    assert [m.training for m in model.modules()] == modes
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_auxiliary_head_still_trains() -> None:
    model, x = build("auxiliary"), images("auxiliary")
    prune_(model, half(model, x)).train()
    assert model.get_submodule("aux").in_features == 3
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_second_pass_prunes_what_is_left() -> None:
    model = BUILDERS["resnet20_cifar"]().eval()
    x = torch.randn(1, 3, 32, 32)
    first = half(model, x)
    prune_(model, first)
    second = half(model, x, seed=1)
    assert second.parameters[0] == first.parameters[1]
    prune_(model, second)
    assert model(x).shape == (1, 10) and parameters(model) == second.parameters[1]


def other_kernel() -> nn.Module:
    model = Chain()
    model.conv2 = nn.Conv2d(6, 5, 1)
    return model


def other_depth() -> nn.Module:
    model = Chain()
    model.fc = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4))  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    "other", [Chain(7, 5), Chain(6, 4), other_kernel(), other_depth(), build("residual"), nn.Linear(3, 3)]
)
def test_a_plan_for_another_network_is_refused_and_nothing_changes(other: nn.Module) -> None:
    plan = half(build("chain"), images("chain"))
    before = dict(other.state_dict(keep_vars=True))
    values = {n: t.clone() for n, t in before.items()}
    with pytest.raises(MintError, match="made for another network; write a new one with --dry-run") as raised:
        prune_(other, plan)
    assert not isinstance(raised.value, CheckFailed)
    after = other.state_dict(keep_vars=True)
    assert all(after[n] is t for n, t in before.items())
    assert all(torch.equal(after[n], t) for n, t in values.items())


@pytest.mark.parametrize(
    "change",
    [
        {"removed": (0, 6)},
        {"removed": (-1,)},
        {"removed": (0, 1, 2, 3, 4, 5)},
        {"removed": ()},
        {"layer": "nowhere"},
        {"kind": "parameter"},
        {"total": 9},
        {"side": "sideways"},
    ],
)
def test_cuts_that_cannot_be_made_are_refused_and_nothing_changes(change: dict[str, object]) -> None:
    model, x = build("chain"), images("chain")
    plan = half(model, x)
    cuts = tuple(replace(c, **change) if c.layer == "conv1" else c for c in plan.cuts)  # type: ignore[arg-type]
    assert any(c != d for c, d in zip(cuts, plan.cuts, strict=True))
    output = model(x)
    with pytest.raises(MintError):
        prune_(model, replace(plan, cuts=cuts))
    assert torch.equal(model(x), output)


def test_a_prediction_that_does_not_come_true_fails_the_check() -> None:
    model = build("chain")
    plan = half(model, images("chain"))
    wrong = {n: (b, a - (n == "fc")) for n, (b, a) in plan.layers.items()}
    said = plan.layers["fc"][1]
    with pytest.raises(CheckFailed, match=re.escape(f"'fc' has {said} parameters; the plan says {said - 1}")):
        prune_(model, replace(plan, layers=wrong))


def test_a_group_cut_only_in_part_fails_the_check() -> None:
    model = build("chain")
    plan = half(model, images("chain"))
    cuts: tuple[LayerCut, ...] = tuple(c for c in plan.cuts if c.layer != "bn1")
    with pytest.raises(CheckFailed, match="'bn1' has 12 parameters; the plan says 6"):
        prune_(model, replace(plan, cuts=cuts))
