"""Labels: which channels are one, as operations move them; and what is told apart, at what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.bisection import tell_apart
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_groups import label_groups
from mint_compress.graph.label_meeting import meet, product
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.labels import Units, compact


def partition(labels: Tensor) -> list[int]:
    """The same numbers for the same labels, counted from 0."""
    return torch.unique(labels, return_inverse=True)[1].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(5))
def test_joined_units_are_the_connected_components(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randint(0, 40, (25,), generator=generator) for _ in range(2))
    units = Units()
    units.fresh(39)
    units.join(one, other)
    component = list(range(40))
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        if a and b:
            old, new = component[a], component[b]
            component = [new if c == old else c for c in component]
    found = units.find(torch.arange(1, 40))
    assert [[bool(a == b) for b in found] for a in found] == [
        [a == b for b in component[1:]] for a in component[1:]
    ]


def test_what_is_expanded_stays_small() -> None:
    units = Units()
    wide = units.fresh(3).reshape(1, 3, 1).expand(1000, 3, 1000)
    assert compact(units.find(wide)).numel() == 3 and units.varying(wide) == {1}
    units.join(wide, units.fresh(3).reshape(1, 3, 1).expand(1000, 3, 1000))
    assert units.find(torch.arange(1, 7)).tolist() == [1, 2, 3, 1, 2, 3]


def test_a_reader_joins_what_stands_at_the_same_index() -> None:
    units = Units()
    tokens = units.fresh(6).reshape(1, 2, 3)
    assert partition(units.across(tokens, -1)) == [0, 1, 2]
    assert units.find(tokens)[0, 0].tolist() == units.find(tokens)[0, 1].tolist()


def test_padding_is_no_channel_and_a_constant_as_wide_holds_channels() -> None:
    units = Units()
    a, b = units.fresh(4), units.fresh(2)
    padded = torch.cat([b, torch.zeros(2, dtype=torch.int64)])
    assert meet(units, [a, padded], [4]).tolist() == a.tolist()
    assert units.find(b).tolist() == a[:2].tolist()
    assert set(units.frozen()) == set(a[2:].tolist())
    assert units.frozen()[int(a[3])] == "its channels meet values of a fixed width"
    # a value for all channels holds none
    meet(units, [c := units.fresh(4), torch.zeros(1, dtype=torch.int64)], [4])
    assert not set(units.frozen()) & set(c.tolist())


def test_heads_are_found_where_queries_meet_keys() -> None:
    units = Units()
    q, k, v = (units.fresh(6).reshape(1, 2, 1, 3).expand(1, 2, 5, 3) for _ in range(3))
    scores = product(units, q, k.transpose(-2, -1))
    assert units.varying(scores) == {1}
    assert partition(product(units, scores, v)[0, :, 0, :].flatten()) == [0, 1, 2, 3, 4, 5] or (
        partition(units.find(v)[0, :, 0, :].flatten()) == [0, 0, 0, 1, 1, 1]
    )
    assert partition(units.find(torch.cat([q, k, v], -1))[0, :, 0, :].flatten()) == [0] * 9 + [1] * 9


def test_channels_summed_with_fixed_weights_stay() -> None:
    units = Units()
    x = units.fresh(3).reshape(1, 1, 3).expand(1, 4, 3)
    result = product(units, x, torch.zeros(1, 1, 1, dtype=torch.int64).expand(1, 3, 2))
    assert not result.any() and len(units.frozen()) == 3


def test_an_unknown_operation_holds_what_it_reads() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).sort(-1).values)  # type: ignore[no-any-return]

    recorder = Recorder(Sorted().eval())
    recorder.run((torch.randn(2, 4),))
    reasons = {g.name: g.reason for g in label_groups(recorder.recording())}
    assert reasons["one"] == "the operation sort is not understood"


def grouped(names: Sequence[str]) -> dict[int, ChannelGroup]:
    return {i: ChannelGroup(name, 4, ()) for i, name in enumerate(names)}


def fails(wrong: set[int], asked: list[int]) -> Callable[[Sequence[int]], str | None]:
    def fault(some: Sequence[int]) -> str | None:
        asked.append(len(some))
        return "wrong" if wrong & set(some) else None

    return fault


@pytest.mark.parametrize("wrong", [set(), {0}, {3, 4}, {1, 5, 9}, set(range(10))])
def test_exactly_the_wrong_ones_are_told_apart(wrong: set[int]) -> None:
    asked: list[int] = []
    found = tell_apart(grouped("abcdefghij"), fails(wrong, asked), trials=100)
    assert found == dict.fromkeys(wrong, "wrong")
    assert len(asked) <= 1 + 2 * 4 * max(len(wrong), 0) and asked[0] == 10


def test_a_bounded_number_of_trials_refuses_too_much_and_never_too_little() -> None:
    asked: list[int] = []
    names = [f"block{i}.{part}" for i in range(8) for part in ("good", "wrong")]
    wrong = {i for i, name in enumerate(names) if name.endswith("wrong")}
    found = tell_apart(grouped(names), fails(wrong, asked), trials=3)
    # names that differ by numbers only stay together, so the first halving separates them
    assert set(found) == wrong and len(asked) == 3
    assert found[1] == "too costly to tell apart (one of 8 groups: wrong)"


def test_kinds_of_names_are_told_apart_before_trials_run_out() -> None:
    names = [f"block{i}.attention" for i in range(5)] + [f"block{i}.mlp" for i in range(3)] + ["stem"]
    found = tell_apart(grouped(names), fails(set(range(5)), []), trials=5)
    assert set(found) == set(range(5))


def test_wrong_only_together_is_wrong() -> None:
    found = tell_apart(grouped("ab"), lambda some: "clash" if len(some) == 2 else None, trials=9)
    assert found == {0: "clash", 1: "clash"}


def test_channels_are_followed_through_patches_and_back() -> None:
    class Patches(nn.Module):
        """Pixels two by two as tokens, and back (Yuan et al., "VOLO", 2021)."""

        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.tokens = nn.Conv2d(3, 6, 1), nn.Linear(6 * 4, 5)
            self.back, self.head = nn.Linear(5, 7 * 4), nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            patches = F.unfold(self.inputs(x), 2, stride=2)
            tokens = self.tokens(patches.transpose(1, 2)).relu()
            maps = F.fold(self.back(tokens).transpose(1, 2), x.shape[2:], 2, stride=2)
            y: Tensor = self.head(maps)
            return y

    torch.manual_seed(0)
    model, x = Patches().eval(), torch.randn(2, 3, 4, 4)
    groups = {g.name: g for g in find_groups(model, x)}
    assert {name: (g.width, g.prunable) for name, g in groups.items()} == {
        "inputs": (6, True),
        "tokens": (5, True),
        "back": (7, True),
        "head": (2, False),
    }
    (read,) = groups["inputs"].consumers
    assert read.positions.tolist() == [channel for channel in range(6) for _ in range(4)]
    (made,) = (m for m in groups["back"].members if m.side == "out")
    assert made.positions.tolist() == [channel for channel in range(7) for _ in range(4)]


@pytest.mark.parametrize("whole", [True, False])
def test_channels_that_are_copied_go_or_stay_with_what_they_are_written_to(whole: bool) -> None:
    class Written(nn.Module):
        """Writes over all of a tensor, or over a part of one that has other channels."""

        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6 if whole else 9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.inputs(x)
            size = [len(x), maps.shape[1] if whole else 9, *x.shape[2:]]
            into = x.new_zeros(size)
            (into if whole else into[:, :6]).copy_(maps)
            y: Tensor = self.head(into)
            return y

    torch.manual_seed(0)
    groups = find_groups(Written().eval(), torch.randn(2, 3, 4, 4))
    (inputs,) = (g for g in groups if g.name == "inputs")
    assert inputs.prunable == whole
    if not whole:
        assert inputs.reason == "the operation copy_ is not understood"
