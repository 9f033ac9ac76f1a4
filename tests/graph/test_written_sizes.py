"""Sizes that modules keep and cut channels by: found in a pass, changed with the plan, kept in the file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import conv
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.checkpoints.loading import load
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.written_numbers import Place, remembering
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.layer_sizes import set_shapes_
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan


class Cut(nn.Module):
    """One layer's channels are cut by numbers that the module keeps, and read behind one another."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.rest, self.sizes = 6, 10, (6, 10)
        self.one, self.two, self.three = conv(3, 16), conv(6, 6), conv(22, 12, 1)
        self.head = nn.Linear(12, 4)

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.parts(F.relu(self.one(x)))
        y = torch.cat([a, b, self.two(a)], 1)
        result: Tensor = self.head(F.relu(self.three(y)).mean((2, 3)))
        return result


class BySizes(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return x.split((self.c, self.rest), 1)


class ByTuple(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return torch.split(x, self.sizes, dim=1)


class BySlices(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return x[:, : self.c], x[:, self.c :]


class FromTheEnd(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return x[..., : -self.rest, :, :], x[:, -self.rest :]


class ByPlace(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return torch.tensor_split(x, (self.c,), dim=1)


class Narrowed(Cut):
    def parts(self, x: Tensor) -> Sequence[Tensor]:
        return x.narrow(1, 0, self.c), x.narrow(1, self.c, self.rest)


class Unflattened(Cut):
    def __init__(self) -> None:
        super().__init__()
        self.times = 2
        self.three = conv(16, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x)).unflatten(1, (self.times, (self.c + self.rest) // 2))
        result: Tensor = self.head(F.relu(self.three(x.flatten(1, 2))).mean((2, 3)))
        return result


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def noise(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def without(model: nn.Module, gone: Sequence[int]) -> tuple[nn.Module, PruningPlan, bool]:
    """The network without these channels of its first layer; the plan; whether that stands its trial."""
    groups = find_groups(model, noise(1))
    (group,) = (g for g in groups if g.name == "one")
    assert group.prunable, group.reason
    plan = make_plan(groups, {"one": np.isin(np.arange(group.width), gone)}, asked=None)
    tried = after_trial(model, noise(1), groups, plan)
    return prune_(copy.deepcopy(model), plan), plan, all(g.prunable for g in tried if g.name == "one")


@pytest.mark.parametrize("kind", [BySizes, ByTuple, BySlices, FromTheEnd, ByPlace, Narrowed])
def test_numbers_by_which_channels_are_cut_shrink_with_them(kind: type[Cut], tmp_path: Path) -> None:
    model = made(kind)
    small, plan, right = without(model, [1, 4, 7, 8, 9, 10, 15])
    assert right
    used = {
        "ByTuple": {"sizes": [4, 5]},
        "BySlices": {"c": 4},
        "FromTheEnd": {"rest": 5},
        "ByPlace": {"c": 4},
    }
    assert plan.sizes == {"": used.get(kind.__name__, {"c": 4, "rest": 5})}
    deaf = copy.deepcopy(model)
    with torch.no_grad():  # readers that ignore the channels are the oracle
        deaf.two.weight[:, [1, 4]] = 0  # type: ignore[union-attr, index]
        deaf.three.weight[:, [1, 4, 7, 8, 9, 10, 15]] = 0  # type: ignore[union-attr, index]
        torch.testing.assert_close(small(noise()), deaf(noise()))
    assert PruningPlan.from_json(plan.to_json()).sizes == plan.sizes
    # a file carries them, also after a second pass
    save(small, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", builder=kind)
    assert torch.equal(again(noise()), small(noise()))
    smaller, _, right = without(again, [0, 6])
    save(smaller, tmp_path / "b.safetensors")
    assert right and torch.equal(load(tmp_path / "b.safetensors", builder=kind)(noise()), smaller(noise()))


class Heads(nn.Module):
    """Attention written by hand, in the way of many repositories: its sizes are attributes."""

    def __init__(self, fused: bool = True, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.per_head, self.inner, self.fused = heads, 6, heads * 6, fused
        self.stem, self.qkv = nn.Linear(5, width), nn.Linear(width, 3 * self.inner)
        self.out, self.head = nn.Linear(self.inner, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, tokens, _ = x.shape
        q, k, v = (
            t.view(n, tokens, self.heads, self.per_head).transpose(1, 2)
            for t in self.qkv(x).split(self.inner, -1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.per_head**-0.5).softmax(-1) @ v
        result: Tensor = self.head((x + self.out(y.transpose(1, 2).reshape(n, tokens, self.inner))).mean(1))
        return result


@pytest.mark.parametrize("fused", [True, False])
def test_attention_written_by_hand_loses_whole_heads(fused: bool) -> None:
    model = made(lambda: Heads(fused))
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    groups = find_groups(model, x[:1])
    assert {g.name: g.width for g in groups if g.prunable} == {"stem": 24, "qkv": 4}
    plan = make_plan(groups, {"qkv": np.isin(np.arange(4), [0, 2])}, asked=None)
    assert plan.sizes == {"": {"heads": 2, "inner": 12}}
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    with torch.no_grad():
        deaf.out.weight[:, [*range(6), *range(12, 18)]] = 0  # type: ignore[union-attr, index]
        torch.testing.assert_close(small(x), deaf(x))


def test_what_no_number_says_is_left_to_the_trial() -> None:
    reasons = {g.name: g.reason for g in find_groups(made(Unflattened), noise(1))}
    assert "the network then fails" in str(reasons["one"]) and reasons["three"] is None


class Counting(BySizes):
    """Counts its calls; and keeps numbers that have nothing to do with widths."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.flags, self.names = 0, [True, False], ["a"]

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        self.calls += 1
        return super().parts(x)


def test_attributes_are_plain_numbers_again_afterwards() -> None:
    model = made(Counting)
    recorder = Recorder(model)
    recorder.run((noise(1),))
    kept: dict[str, Any] = {
        k: v for k, v in vars(model).items() if k in ("calls", "c", "sizes", "flags", "names")
    }
    assert kept == {"calls": 1, "c": 6, "sizes": (6, 10), "flags": [True, False], "names": ["a"]}
    assert [type(kept[k]) for k in ("calls", "c")] == [int, int]
    with remembering(model, ()) as values:
        assert values[Place("", "sizes", 1)] == 10 and Place("", "flags", 0) not in values
        number = 2 * model.c + model.rest // 3 - 1  # type: ignore[operator]
        assert number == 14 and number.formula.value({Place("", "c"): 5, Place("", "rest"): 9}) == 12
        assert (model.c * 0.5, model.c**2, f"{model.c}") == (3.0, 36, "6")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        ("", {"c": 7}),
        ("", {"c": 0}),
        ("", {"sizes": [3]}),
        ("", {"training": 1}),
        ("", {"_buffers": 1}),
        ("one", {"stride": [1, 1]}),
        ("nothing", {"c": 3}),
    ],
)
def test_plans_and_files_set_nothing_but_sizes(module: str, sizes: Any) -> None:
    model = made(BySizes)
    plan = make_plan(find_groups(model, noise(1)), {"one": np.arange(16) < 1}, asked=None)
    damaged = PruningPlan.from_dict({**plan.to_dict(), "sizes": {module: sizes}})
    with pytest.raises(MintError, match=r"which is not a size of it|it has a layer 'nothing'"):
        set_shapes_(model, {module: sizes})
    with pytest.raises(MintError, match="The plan sets sizes that the network does not have"):
        prune_(model, damaged)
