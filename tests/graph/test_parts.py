"""Channels that a network cuts into parts whose widths hang together: as many go from every part."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import conv
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.candidates import candidate
from mint_compress.planning.choices import make_plan
from mint_compress.planning.search import plan
from mint_compress.scoring.scores import ChannelScores
from mint_compress.settings import Budget
from mint_compress.surgery.pruning import prune_

Cut = Callable[[Tensor], tuple[Tensor, ...]]

HALVES: dict[str, Cut] = {
    "chunk": lambda x: x.chunk(2, 1),
    "split by the width": lambda x: torch.split(x, x.shape[1] // 2, 1),
    "split in two": lambda x: x.split((x.shape[1] // 2,) * 2, 1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, 1),
    "slices": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
    "narrow": lambda x: tuple(x.narrow(1, at * x.shape[1] // 2, x.shape[1] // 2) for at in (0, 1)),
}


class Halved(nn.Module):
    """A block in the way of CSP and C2f: both halves are read behind one another, one of them changed."""

    def __init__(self, cut: Cut, width: int = 16) -> None:
        super().__init__()
        self.cut = cut
        self.one, self.norm = conv(3, width, bias=False), nn.BatchNorm2d(width)
        inner = self.cut(torch.zeros(1, width, 1, 1))[-1].shape[1]
        self.two, self.three = conv(inner, inner), conv(width + inner, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.cut(F.relu(self.norm(self.one(x))))
        y = [*parts, parts[-1] + self.two(parts[-1])]
        result: Tensor = self.head(F.relu(self.three(torch.cat(y, 1))).mean((2, 3)))
        return result


def noise(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def group_of(model: nn.Module, name: str = "one") -> tuple[ChannelGroup, list[ChannelGroup]]:
    groups = find_groups(model, noise(1))
    (group,) = (g for g in groups if g.name == name)
    return group, groups


@pytest.mark.parametrize("cut", HALVES.values(), ids=HALVES)
def test_halves_lose_equally_many_channels_each_its_own(cut: Cut) -> None:
    model = made(lambda: Halved(cut))
    group, groups = group_of(model)
    assert group.prunable, group.reason
    assert group.parts is not None and group.parts.tolist() == [0] * 8 + [1] * 8
    # the first half is worth most in front, the second behind: nothing that goes stands at the same place
    nats = {g.name: torch.ones(g.width, dtype=torch.float64) for g in groups if g.prunable}
    nats["one"] = torch.cat([torch.arange(8, 0, -1), torch.arange(1, 9)]).double()
    (step, *_), *_ = [candidate(group, nats["one"].numpy(), upper_limit=0.9, round_to=1, blocks=0).steps]
    assert step.tolist() == [7, 8]
    chosen = plan(groups, ChannelScores(nats, "given", 0, 0), Budget(0.4, round_to=1))
    gone = np.array(next(c.removed for c in chosen.groups if c.group == "one"))
    assert len(gone) and (gone < 8).sum() == (gone >= 8).sum()
    assert after_trial(model, noise(1), groups, chosen) == groups
    small = prune_(copy.deepcopy(model), chosen)
    assert small.one.out_channels == 16 - len(gone)  # type: ignore[union-attr]
    assert small.two.in_channels == 8 - len(gone) // 2  # type: ignore[union-attr]
    assert small(noise()).shape == (2, 4)


def test_what_goes_from_halves_goes_by_itself_alone() -> None:
    """Readers that ignore the channels are the oracle: the network without them does the same."""
    model = made(lambda: Halved(HALVES["chunk"]))
    _, groups = group_of(model)
    mask = np.isin(np.arange(16), [0, 3, 5, 9, 14, 15])
    chosen = make_plan(groups, {"one": mask}, asked=None)
    small, deaf = prune_(copy.deepcopy(model), chosen), copy.deepcopy(model)
    with torch.no_grad():
        deaf.two.weight[:, [1, 6, 7]] = 0  # type: ignore[union-attr, index]
        deaf.three.weight[:, [0, 3, 5, 9, 14, 15, 17, 22, 23]] = 0  # type: ignore[union-attr, index]
        torch.testing.assert_close(small(noise()), deaf(noise()))


def test_parts_of_other_sizes_and_parts_of_parts_lose_the_same_share() -> None:
    def quarter(x: Tensor) -> tuple[Tensor, ...]:
        return x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]

    def twice(x: Tensor) -> tuple[Tensor, ...]:
        one, two = x.chunk(2, 1)
        return one, *two.chunk(2, 1)

    group, _ = group_of(made(lambda: Halved(quarter)))
    assert group.prunable and [(len(own), share) for own, share in group.shares] == [(4, 1), (12, 3)]
    group, _ = group_of(made(lambda: Halved(twice)))
    assert group.prunable and [(len(own), share) for own, share in group.shares] == [(8, 2), (4, 1), (4, 1)]


def test_widths_of_parts_are_rounded_each_by_itself() -> None:
    group, _ = group_of(made(lambda: Halved(HALVES["chunk"], 48)))
    one = candidate(group, np.arange(48.0), upper_limit=0.95, round_to=8, blocks=0)
    widths = {tuple(np.bincount(group.parts[~one.mask(k)]).tolist()) for k in range(len(one.steps) + 1)}  # type: ignore[index]
    assert widths == {(24, 24), (16, 16), (8, 8)}


def test_a_cut_that_follows_the_widths_by_itself_ties_nothing() -> None:
    class Side(nn.Module):
        """Two layers side by side, taken apart again where one of them ends."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3, 6), conv(3, 8)
            self.read, self.other = conv(6, 5), conv(8, 5)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.one(x), self.two(x)
            y = F.relu(torch.cat([one, two], 1))
            y = self.read(y[:, : one.shape[1]]) + self.other(y[:, one.shape[1] :])
            result: Tensor = self.head(F.relu(y).mean((2, 3)))
            return result

    groups = find_groups(made(Side), noise(1))
    assert {g.name for g in groups if g.prunable} == {"one", "two", "read"}
    assert all(g.parts is None for g in groups)


def test_a_place_that_is_written_in_the_forward_pass_is_left_alone() -> None:
    group, _ = group_of(made(lambda: Halved(lambda x: (x[:, :4], x[:, 4:]))))
    assert not group.prunable and group.reason is not None and "cannot be removed" in group.reason


def test_gates_stay_that_the_layer_of_the_channels_makes() -> None:
    class Focal(nn.Module):
        """Context that single channels gate (Yang et al., "Focal Modulation Networks", 2022)."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes = [6, 6, 2]
            self.inputs, self.f = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 14, 1)
            self.h, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, context, gates = self.f(self.inputs(x)).split(self.sizes, 1)
            wide = context.mean((2, 3), keepdim=True)
            y: Tensor = self.head(q * self.h(context * gates[:, :1] + wide * gates[:, 1:]))
            return y

    torch.manual_seed(0)
    model, x = Focal().eval(), torch.randn(2, 3, 4, 4)
    groups = find_groups(model, x)
    (group,) = (g for g in groups if g.name == "f")
    assert group.prunable and group.width == 12
    (made,) = (m for m in group.members if (m.layer, m.side) == ("f", "out"))
    assert made.total == 14 and made.channels.tolist() == list(range(12))
    plan = make_plan(groups, {"f": np.isin(np.arange(12), (0, 4, 7, 9))}, asked=None)
    deaf = copy.deepcopy(model)
    with torch.no_grad():
        deaf.head.weight[:, [0, 4]] = 0
        deaf.h.weight[:, [1, 3]] = 0
    small = prune_(copy.deepcopy(model), plan)
    assert (small.f.out_channels, small.sizes) == (10, [4, 4, 2])
    torch.testing.assert_close(small(x), deaf(x))
