"""Repair: exact where it can be, and never for the worse."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, Chain, Mixer, build, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.finding import find_groups
from mint_compress.nn import batch_size
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.repair import compensation
from mint_compress.repair.adjacency import trace
from mint_compress.repair.compensation import compensate_
from mint_compress.repair.layer_fit import refit_
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan


def removing(model: nn.Module, x: Tensor, **positions: Sequence[int]) -> tuple[nn.Module, PruningPlan]:
    """The model without those positions of the groups named, and the plan."""
    groups, masks = find_groups(model, x[:1]), {}
    for group in groups:
        if group.name in positions:
            masks[group.name] = np.isin(np.arange(group.width), positions[group.name])
    assert set(masks) == set(positions)
    plan = make_plan(groups, masks, asked=0.5)
    return prune_(copy.deepcopy(model), plan), plan


def without_a_half(name: str, x: Tensor) -> tuple[nn.Module, nn.Module, PruningPlan]:
    model = build(name)
    groups = [g for g in find_groups(model, x[:1]) if g.prunable]
    half = {g.name: [p for own, _ in g.shares for p in own[: len(own) // 2]] for g in groups}
    pruned, plan = removing(model, x, **half)
    return model, pruned, plan


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        a, b = one.eval()(x), other.eval()(x)
    return float((a - b).abs().max() / a.std())


def test_a_copy_of_kept_channels_costs_nothing() -> None:
    """Behind the ReLU channel 5 is 2 x channel 0 + 3 x channel 2, exactly."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3), nn.Flatten())
    model.append(nn.Linear(20, 3))
    mixing = model.get_submodule("2")
    assert isinstance(mixing, nn.Conv2d) and mixing.bias is not None
    with torch.no_grad():
        mixing.weight[5] = 2 * mixing.weight[0] + 3 * mixing.weight[2]
        mixing.bias[5] = 2 * mixing.bias[0] + 3 * mixing.bias[2]
    x = images("chain", 64)
    pruned, plan = removing(model, x, **{"2": [5]})
    assert difference(model, pruned, x) > 0.05
    compensate_(pruned, model, plan, [x])
    assert difference(model, pruned, x) < 1e-4
    assert difference(model, pruned, images("chain", 64, seed=9)) < 1e-4


def test_more_images_come_as_the_maps_get_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images("chain", 64)
    model, pruned, plan = without_a_half("chain", x)
    monkeypatch.setattr(batch_size, "ALIVE", batch_size.MAPS * 9 * model.conv1(x[:1]).nbytes)
    monkeypatch.setitem(batch_size.LARGEST, "cpu", 3 * model.conv1(x[:1]).nbytes)
    seen: dict[str, int] = {}
    twin = copy.deepcopy(pruned)

    def checked(layer: Any, pairs: Any, networks: Any, generator: Any) -> Any:
        seen[layer.name] = 3 * len(pairs)
        given: list[Tensor] = []
        twin.load_state_dict(pruned.state_dict())
        module = twin.get_submodule(layer.name)
        hook = module.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        with torch.no_grad():
            twin(x[3 * (len(pairs) - 1) :][:3])
        hook.remove()
        # one that began late has gone through the layers as they are by now
        torch.testing.assert_close(pairs[-1].pruned.given(), given[0])
        return refit_(layer, pairs, networks, generator)

    monkeypatch.setattr(compensation, "refit_", checked)
    repairs = compensate_(pruned, model, plan, [x])
    assert {one.layer: one.images for one in repairs} == {name: min(n, 64) for name, n in seen.items()}
    assert list(seen.values()) == sorted(seen.values())
    assert next(iter(seen.values())) == 9 and seen["fc"] > 60, seen


def test_a_duplicate_behind_normalisation_and_relu_costs_nothing() -> None:
    model, x = build("chain"), images("chain", 64)
    assert isinstance(model, Chain)
    norm = model.bn1
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        model.conv1.weight[4] = model.conv1.weight[1]
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[4] = tensor[1]
    pruned, plan = removing(model, x, conv1=[4])
    compensate_(pruned, model, plan, [x])
    assert difference(model, pruned, images("chain", 64, seed=9)) < 1e-4


class Constant(nn.Module):
    """Channel 2 of ``first`` is 1.5 everywhere; its reader has a bias, a BatchNorm, or both."""

    def __init__(self, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)
        self.reader = nn.Conv2d(5, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.fc = nn.Linear(4, 3)
        assert self.first.bias is not None
        with torch.no_grad():
            self.first.weight[2] = 0
            self.first.bias[2] = 1.5
            if isinstance(self.norm, nn.BatchNorm2d):
                assert self.norm.running_mean is not None and self.norm.running_var is not None
                self.norm.running_mean.normal_(0, 0.3)
                self.norm.running_var.uniform_(0.5, 2)
                self.norm.weight.uniform_(-2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.reader(torch.relu(self.first(x))))
        return self.fc(torch.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("bias", "norm"), [(True, False), (False, True), (True, True)])
def test_a_constant_goes_into_the_bias_or_the_normalisation(bias: bool, norm: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Constant(bias=bias, norm=norm).eval()
    x = images("chain", 64)
    pruned, plan = removing(model, x, first=[2])
    assert difference(model, pruned, x) > 0.05
    compensate_(pruned, model, plan, [x])
    assert difference(model, pruned, images("chain", 64, seed=9)) < 1e-4
    reader, whole = pruned.get_submodule("reader"), model.get_submodule("reader")
    assert (reader.bias is None) == (not bias)
    assert isinstance(reader.weight, Tensor) and isinstance(whole.weight, Tensor)
    torch.testing.assert_close(reader.weight, whole.weight[:, [0, 1, 3, 4]], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_never_for_the_worse_nothing_added_nothing_else_touched(name: str) -> None:
    x = images(name, 48)
    model, pruned, plan = without_a_half(name, x)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    shapes = {n: t.shape for n, t in pruned.state_dict().items()}
    count = parameters(pruned)
    model.train()
    repairs = compensate_(pruned, model, plan, [x[:30], (x[30:], None)])
    assert repairs and len({r.layer for r in repairs}) == len(repairs)
    for repair in repairs:
        assert repair.after <= repair.before
        assert repair.ridge is not None or repair.after == repair.before
    assert parameters(pruned) == count == plan.parameters[1]
    assert {n: t.shape for n, t in pruned.state_dict().items()} == shapes
    assert all(bool(t.isfinite().all()) for t in pruned.state_dict().values())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(m.training for m in model.modules()) and not any(m.training for m in pruned.modules())
    for module in (*model.modules(), *pruned.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize(
    "name",
    [
        "chain",
        "residual",
        "concat",
        "depthwise",
        "grouped",
        "flatten",
        "padded",
        "norm_mlp",
        "one_dimensional",
        "lstm",
        "gru",
        "cells",
    ],
)
def test_held_out_outputs_come_closer(name: str) -> None:
    x, fresh = images(name, 96), images(name, 200, seed=7)
    model, pruned, plan = without_a_half(name, x)

    def error() -> float:
        with torch.no_grad():
            return float((model.eval()(fresh) - pruned(fresh)).square().mean())

    unrepaired = error()
    compensate_(pruned, model, plan, [x])
    assert error() < 0.8 * unrepaired


def test_only_layers_with_fewer_inputs_when_asked() -> None:
    x = images("chain", 32)
    model = build("chain")
    pruned, plan = removing(model, x, conv1=[0, 3])
    assert [r.layer for r in compensate_(copy.deepcopy(pruned), model, plan, [x])] == ["conv2", "fc"]
    repairs = compensate_(pruned, model, plan, [x], everywhere=False)
    assert [r.layer for r in repairs] == ["conv2"]
    assert torch.equal(pruned.get_submodule("fc").weight, model.get_submodule("fc").weight)  # type: ignore[arg-type]


def test_the_same_repair_whenever_asked() -> None:
    x = images("residual", 40)
    model, pruned, plan = without_a_half("residual", x)
    other = copy.deepcopy(pruned)
    one = compensate_(pruned, model, plan, [x], seed=3)
    assert one == compensate_(other, model, plan, [x[:7], x[7:]], seed=3)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


class SharedActivation(nn.Module):
    """One ReLU behind two layers of different widths; what it gave first is the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3), nn.ReLU()
        self.inner, self.outer = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 1)
        self.fc = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow = self.act(self.stem(x)), self.act(self.side(x))
        wide = wide + self.outer(F.relu(self.inner(wide)))
        return self.fc(torch.cat([wide, narrow], 1).mean((2, 3)))  # type: ignore[no-any-return]


class PlacesLast(Mixer):
    """Places are mixed behind a layer that has lost inputs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(x + self.fc2(F.gelu(self.fc1(x))))
        x = x + self.places2(F.gelu(self.places1(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [SharedActivation, PlacesLast])
def test_what_the_pruned_network_has_no_counterpart_of_is_not_imitated(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(32, 3, 6, 6)
    half = {g.name: range(g.width // 2) for g in find_groups(model, x[:1]) if g.prunable}
    pruned, plan = removing(model, x, **half)
    before = difference(model, pruned, x)
    repaired = {r.layer for r in compensate_(pruned, model, plan, [x])}
    assert difference(model, pruned, x) < before
    assert not {n for n in repaired if n.startswith("places")}


def test_progress_ends_at_the_total() -> None:
    x = images("chain", 8)
    model, pruned, plan = without_a_half("chain", x)
    calls: list[tuple[str, int, int]] = []
    compensate_(pruned, model, plan, [x], progress=lambda *call: calls.append(call))
    assert calls == [("repair", 1, 2), ("repair", 2, 2)]


class PadsItself(nn.Conv2d):
    """As timm's Conv2dSame: what it multiplies with its weights is not what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class Tail(nn.Module):
    """A layer to prune, one that reads it, and whatever comes then; all without a bias."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1, bias=False)
        self.behind = nn.Sequential(*behind)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind(torch.relu(self.reader(torch.relu(self.first(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [PadsItself, Standardised])
def test_a_layer_with_ways_of_its_own_is_not_made_worse(kind: type[nn.Conv2d]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tail(kind(5, 5, 2, bias=False), nn.ReLU()).eval()
    x, fresh = images("chain", 64), images("chain", 64, seed=7)
    pruned, plan = removing(model, x, first=[0], reader=[1])
    unrepaired = difference(model, pruned, fresh)
    repairs = compensate_(pruned, model, plan, [x])
    assert [r.layer for r in repairs] == ["reader", "fc"]
    assert difference(model, pruned, fresh) <= unrepaired


def test_layers_that_share_a_weight_are_left_as_they_are() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = nn.Conv2d(5, 5, 1, bias=False), nn.Conv2d(5, 5, 1, bias=False)
        other.weight = one.weight
        model = Tail(one, nn.ReLU(), other, nn.ReLU()).eval()
    x = images("chain", 64)
    pruned, plan = removing(model, x, first=[0])
    repairs = compensate_(pruned, model, plan, [x])
    assert [r.layer for r in repairs] == ["reader", "fc"]


def test_an_intercept_never_goes_into_a_normalisation_that_two_layers_share() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(5)
        one, other = nn.Conv2d(5, 5, 1, bias=False), nn.Conv2d(5, 5, 1, bias=False)
        model = Tail(one, norm, nn.ReLU(), other, norm).eval()
    x = images("chain", 64)
    pruned, plan = removing(model, x, first=[0])
    compensate_(pruned, model, plan, [x])
    assert norm.running_mean is not None
    assert torch.equal(pruned.get_submodule("behind.1").running_mean, norm.running_mean)  # type: ignore[arg-type]


class Towers(nn.Module):
    """One encoder for two halves of the channels, as for pairs of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.after, self.norm2 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(12, 3)

    def encode(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.relu(self.norm2(self.after(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        # the second image is brighter: its channels are distributed otherwise
        return self.head(torch.cat([self.encode(x[:, :3]), self.encode(2 * x[:, 3:] + 1)], 1))  # type: ignore[no-any-return]


def test_an_encoder_that_is_called_twice_is_repaired_for_both_calls() -> None:
    torch.manual_seed(3)
    model, x, other = Towers(), torch.randn(64, 6, 7, 7), torch.randn(64, 6, 7, 7)
    with torch.no_grad():
        model.train()(x)
        model.conv.weight[5] = model.conv.weight[1]
        for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var):
            tensor[5] = tensor[1]
        model.conv.weight[2] = 0  # a constant behind the normalisation, to be taken over by norm2
        model.norm.bias[2] = 1.5
    model.eval()
    pruned, plan = removing(model, x, conv=[2, 5])
    assert difference(model, pruned, other) > 0.05
    repairs = compensate_(pruned, model, plan, x.split(16))
    assert [r.layer for r in repairs] == ["after", "head"]
    assert difference(model, pruned, other) < 1e-4


def test_a_layer_that_is_called_twice_serves_both_calls_equally() -> None:
    """What is removed equals channel 0 in the first call and channel 1 in the second: halves are best."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.shared = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.shared(self.one(x)), self.shared(self.other(x))], 1)

    model, x = Twice().eval(), torch.randn(2048, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer, copied in ((model.one, 0), (model.other, 1)):
            layer.bias.zero_()
            layer.weight.copy_(torch.eye(3, 4))
            layer.weight[2] = layer.weight[copied]
    before = model.shared.weight.detach().clone()
    pruned, plan = removing(model, x, other=[2])  # and of one
    (repair,) = compensate_(pruned, model, plan, x.split(64), everywhere=False)
    assert repair.layer == "shared" and repair.after < repair.before
    wanted = before[:, :2] + before[:, 2:] / 2
    torch.testing.assert_close(pruned.shared.weight.detach(), wanted, atol=0.04, rtol=0)


def test_a_normalisation_behind_two_calls_belongs_to_the_layer_if_it_reads_nothing_else() -> None:
    class Odd(Towers):
        def forward(self, x: Tensor) -> Tensor:
            again = self.norm2(F.relu(self.norm2(self.after(F.relu(self.norm(self.conv(x[:, 3:])))))))
            return super().forward(x) + again.mean()  # type: ignore[no-any-return]

    x = torch.randn(2, 6, 7, 7)
    assert trace(Towers().eval(), (x, None)).norms == {"conv": "norm", "after": "norm2"}
    assert trace(Odd().eval(), (x, None)).norms == {"conv": "norm"}
