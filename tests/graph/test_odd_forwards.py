"""Forward passes that do more than call one layer after the other: right, or refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import build, conv, images
from surgery import ignoring
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress import MintError, compensate_, compress, find_groups, prune_
from mint_compress.graph.reference import change
from mint_compress.nn.copying import copied
from mint_compress.planning.choices import make_plan
from mint_compress.planning.search import most_removed
from mint_compress.repair.adjacency import trace
from mint_compress.reporting import Report
from mint_compress.settings import Budget
from mint_compress.surgery.pruning_plan import PruningPlan

SHAPE = (3, 8, 8)
QUICK: dict[str, Any] = {
    **{"input_shape": SHAPE, "ratio": 0.4, "round_to": 1, "upper_limit": 0.9, "epochs": 0, "device": "cpu"},
    **{"calibration_images": 128, "compensate": False},
}


class Base(nn.Module):
    """c1 - c2 - c3 - fc, to be read differently."""

    def __init__(self, one: int = 8, two: int = 8, three: int = 6) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = conv(3, one), conv(one, two), conv(two, three)
        self.fc = nn.Linear(three, 4)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(F.relu(self.c1(x))))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c3(x)).mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(x))


def made(kind: type[nn.Module], *args: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args).eval()


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def compressed(model: nn.Module, **given: Any) -> tuple[nn.Module, Report]:
    return compress(model, **{**QUICK, **given})


def same_as_ignoring(model: nn.Module, pruned: nn.Module, report: Report) -> bool:
    plan, x = PruningPlan.from_dict(report.plan), noise().double()
    with torch.no_grad():
        return change([ignoring(model, plan).double()(x)], [copy.deepcopy(pruned).double()(x)]) < 1e-6


# ---- what a forward pass does may depend on widths


class WhereShapesMatch(Base):
    """A shortcut that no one may see at the whole width."""

    def __init__(self) -> None:
        super().__init__(16, 24, 24)

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.c1(x))
        y = F.relu(self.c2(x))
        return x + y if x.shape == y.shape else y


def test_a_shortcut_that_appears_where_shapes_are_equal() -> None:
    model = made(WhereShapesMatch)
    pruned, report = compressed(model, ratio=0.3, upper_limit=0.95)
    assert pruned.c1.out_channels != pruned.c2.out_channels  # type: ignore[union-attr]
    assert same_as_ignoring(model, pruned, report)

    groups = find_groups(model, noise(1))
    wide = {"c1": np.arange(16) >= 12, "c2": np.arange(24) >= 12}
    wrong = make_plan(groups, wide, asked=None)  # both are 12 wide then
    with pytest.raises(MintError, match=r"The plan is wrong at c\d: its channels cannot be removed: the out"):
        compressed(model, plan=wrong, ratio=None)


class EvenAndOdd(Base):
    """Each second channel meets its neighbour."""

    def __init__(self) -> None:
        super().__init__(8, 16, 6)
        self.c3 = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        x = super().middle(x)
        return x[:, ::2] * x[:, 1::2]


@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_channels_that_are_split_by_turns(ratio: float) -> None:
    model = made(EvenAndOdd)
    pruned, report = compressed(model, ratio=ratio)
    assert same_as_ignoring(model, pruned, report)


# ---- what a forward pass leaves on the network


class Keeping(Base):
    """An activation is kept, as for a plot."""

    def middle(self, x: Tensor) -> Tensor:
        self.last = F.relu(self.c1(x))
        self.maps = {"middle": [F.relu(self.c2(self.last))]}
        return self.maps["middle"][0]


def test_a_network_that_keeps_activations_can_be_compressed() -> None:
    model = made(Keeping)
    model(noise())  # with gradients
    twin = copied(model)
    assert twin.last.grad_fn is None and torch.equal(twin.last, model.last)  # type: ignore[union-attr, arg-type]
    assert model.last.grad_fn is not None  # type: ignore[union-attr]
    pruned, report = compressed(model, compensate=True)
    assert report.ratio.removed >= 0.4 and pruned(noise()).shape == (3, 4)


class SkipsOnItself(Base):
    """Skips that are left on the network, and taken away at the end."""

    def __init__(self) -> None:
        super().__init__(8, 8, 6)
        self.c3, self.kept = conv(16, 6), dict[str, Tensor]()

    def middle(self, x: Tensor) -> Tensor:
        self.kept["skip"] = F.relu(self.c1(x))
        y = F.relu(self.c2(self.kept["skip"]))
        together = torch.cat([y, self.kept["skip"]], 1)
        self.kept.clear()
        return together


class Skips(SkipsOnItself):
    """The same in local variables."""

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.c1(x))
        return torch.cat([F.relu(self.c2(x)), x], 1)


@pytest.mark.parametrize("count", [100, 128])
def test_passes_that_meet_on_the_network_are_repaired_as_if_they_did_not(count: int) -> None:
    repaired = []
    for kind in (SkipsOnItself, Skips):
        model = made(kind)
        groups = find_groups(model, noise(1))
        plan = make_plan(groups, {"c1": np.arange(8) < 4, "c2": np.arange(8) < 3}, asked=None)
        small = prune_(copied(model), plan)
        compensate_(small, model, plan, [noise(count)])
        with torch.no_grad():
            repaired.append(small(noise(20)))
            assert change([model(noise(20))], [repaired[-1]]) < 0.5
    torch.testing.assert_close(*repaired, rtol=0.02, atol=0.01)  # other places are drawn


# ---- who reads what


class PreActivation(nn.Module):
    """A stem without a norm of its own: the first norm is the block's, and the shortcut passes it by."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = conv(3, 8), conv(8, 8, bias=False)
        self.bn, self.c3, self.fc = nn.BatchNorm2d(8), conv(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c2(F.relu(self.c1(x)))
        return self.fc((y + self.c3(F.relu(self.bn(y)))).mean((2, 3)))  # type: ignore[no-any-return]


class PostActivation(PreActivation):
    """The same without the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c3(F.relu(self.bn(self.c2(F.relu(self.c1(x)))))).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_norm_beside_a_shortcut_does_not_read_alone() -> None:
    assert trace(made(PreActivation), noise()).norms == {}
    assert trace(made(PostActivation), noise()).norms == {"c2": "bn"}


class ByName(Base):
    """Layers that are called with their input by name."""

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(input=F.relu(self.c1(input=x))))


def test_layers_that_are_called_by_name() -> None:
    usual, by_name = (compressed(made(kind), compensate=True) for kind in (Base, ByName))
    assert usual[1].macs == by_name[1].macs
    for one, other in zip(usual[0].parameters(), by_name[0].parameters(), strict=True):
        assert torch.equal(one, other)


class WeightAlone(Base):
    """The second layer is not called; its weight is used."""

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(F.relu(self.c1(x)), self.c2.weight, self.c2.bias, padding=1))


def test_a_reader_that_is_not_called() -> None:
    reasons = {g.name: g.reason for g in find_groups(made(WeightAlone), noise(1))}
    assert reasons["c1"] == "a layer that reads it is not called as one (c2)" and reasons["c2"] is None
    _, report = compressed(made(WeightAlone), ratio=0.2)
    assert report.ratio.removed >= 0.2


# ---- odd outputs, parameters and inputs


class ManyOutputs(Base):
    """Logits, some of them masked; a mask; and boxes, of which there are none."""

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.middle(x))
        masked = torch.where(torch.arange(4) == 3, -torch.inf, y)
        return y, masked, y > 0, x.new_zeros(0, 4)


class CountingParameter(Base):
    """A table of whole numbers among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:, self.order]


class OwnTensors(Base):
    """Tensors made in the default precision, as grids and masks are."""

    def middle(self, x: Tensor) -> Tensor:
        y = super().middle(x)
        spread = torch.zeros(*y.shape[:2], 16, 16)
        spread[:, :, ::2, ::2] = y
        return spread @ torch.eye(16)


class NotTooSmall(Base):
    """Fails in its own way on small images."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (1 / (x.shape[2] // 128))


@pytest.mark.parametrize("kind", [ManyOutputs, CountingParameter, OwnTensors])
def test_odd_outputs_and_tensors(kind: type[Base]) -> None:
    groups = {g.name: g for g in find_groups(made(kind), noise(1))}
    assert {n for n, g in groups.items() if g.prunable} == {"c1", "c2", "c3"}, groups
    _, report = compressed(made(kind))
    assert report.ratio.removed >= 0.4
    assert torch.get_default_dtype() == torch.float32


def test_a_network_that_fails_on_small_images_is_tried_on_its_own() -> None:
    groups = find_groups(made(NotTooSmall), torch.zeros(1, 3, 160, 160))
    assert {g.name for g in groups if g.prunable} == {"c1", "c2", "c3"}


class Random(Base):
    """Dropout that eval mode does not switch off."""

    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(super().middle(x), 0.5)


def test_random_outputs_are_named_as_such() -> None:
    with pytest.raises(MintError, match="In eval mode the network gives other outputs for the same inputs"):
        find_groups(made(Random), noise(1))


# ---- plans


@pytest.mark.parametrize("limit", [0.8, 1.0])
def test_a_narrow_layer_beside_others_keeps_a_channel(limit: float) -> None:
    """Two layers side by side share their positions with a wide one."""
    model = build("concat_onto_stream")
    plan = most_removed(
        find_groups(model, images("concat_onto_stream")[:1]), Budget(round_to=1, upper_limit=limit)
    )
    assert plan is not None
    pruned = prune_(copy.deepcopy(model), plan)
    assert min(pruned.left.out_channels, pruned.right.out_channels) >= 1  # type: ignore[union-attr, type-var]
    assert pruned.wide.out_channels == pruned.left.out_channels + pruned.right.out_channels  # type: ignore[union-attr, operator]
