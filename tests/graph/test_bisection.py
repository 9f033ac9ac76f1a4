"""Groups that fail are found exactly, or refused: by brute force over all cases of a few groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import ceil, log2

import numpy as np
import pytest

from mint_compress.graph.bisection import tell_apart
from mint_compress.graph.groups import ChannelGroup

ENOUGH = 100
NAMES = {
    "one kind": [f"layer{i}" for i in range(7)],
    "two kinds": ["a1", "b1", "a2", "b2", "a3", "b3", "a4"],
    "all differ": list("gfedcba"),
}


def named(names: Sequence[str]) -> dict[int, ChannelGroup]:
    return {10 * i: ChannelGroup(name, 4, ()) for i, name in enumerate(names)}


class Trials:
    """Fails with the reason when a set holds all the members of a faulty one; keeps what was asked."""

    def __init__(self, *faulty: Sequence[int]) -> None:
        self.faulty = [set(f) for f in faulty]
        self.asked: list[list[int]] = []

    def __call__(self, some: Sequence[int]) -> str | None:
        self.asked.append(list(some))
        bad = [sorted(f) for f in self.faulty if f <= set(some)]
        return f"broken by {bad[0]}" if bad else None


def subsets(numbers: Sequence[int]) -> list[tuple[int, ...]]:
    return [c for size in range(len(numbers) + 1) for c in combinations(numbers, size)]


@pytest.mark.parametrize("kind", NAMES)
def test_every_set_of_faulty_groups_is_found_exactly(kind: str) -> None:
    groups = named(NAMES[kind])
    for faulty in subsets(list(groups)):
        trials = Trials(*([i] for i in faulty))
        found = tell_apart(groups, trials, trials=ENOUGH)
        assert found == {i: f"broken by [{i}]" for i in faulty}
        # no set is tried twice
        assert len({tuple(some) for some in trials.asked}) == len(trials.asked)


@pytest.mark.parametrize("kind", NAMES)
def test_pairs_that_fail_only_together_are_all_refused(kind: str) -> None:
    groups = named(NAMES[kind])
    for pair in combinations(groups, 2):
        found = tell_apart(groups, Trials(pair), trials=ENOUGH)
        assert found.keys() >= set(pair)
        assert set(found.values()) == {f"broken by {sorted(pair)}"}


@pytest.mark.parametrize("kind", NAMES)
def test_a_pair_that_another_group_hides_is_found_among_those_that_are_left(kind: str) -> None:
    groups = named(NAMES[kind])
    for pair in combinations(groups, 2):
        for third in groups.keys() - set(pair):
            trials = Trials(pair, [third])
            found = tell_apart(groups, trials, trials=ENOUGH)
            left = {i: group for i, group in groups.items() if i not in found}
            assert third in found and len(left.keys() & set(pair)) != 1
            assert left.keys() - tell_apart(left, trials, trials=ENOUGH).keys() <= left.keys() - set(pair)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("trials", range(1, 12))
def test_no_faulty_group_is_passed_and_no_trial_wasted_when_they_run_out(kind: str, trials: int) -> None:
    groups = named(NAMES[kind])
    for faulty in subsets(list(groups)):
        asked = Trials(*([i] for i in faulty))
        found = tell_apart(groups, asked, trials=trials)
        assert len(asked.asked) <= trials + (trials > 1)
        assert found.keys() >= set(faulty) and (faulty or not found)
        for i in found.keys() - set(faulty):
            assert found[i].startswith("too costly to tell apart (one of ")
        if trials == 1 and faulty:
            told = f"too costly to tell apart (one of 7 groups: broken by [{faulty[0]}])"
            assert found == dict.fromkeys(groups, told)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13, 64, 100])
def test_one_faulty_group_of_a_kind_costs_a_logarithm(width: int) -> None:
    groups = named([f"layer{i}" for i in range(width)])
    for number in np.random.default_rng(width).permutation(list(groups))[:20].tolist():
        asked = Trials([number])
        assert list(tell_apart(groups, asked, trials=ENOUGH)) == [number]
        assert len(asked.asked) <= 1 + 2 * ceil(log2(width))


def test_kinds_are_told_apart_first_and_then_the_largest_set() -> None:
    groups = named(["a1", "b1", "a2", "b2", "a3", "c1"])  # numbers 0, 10, ..., 50
    asked = Trials([10], [0])
    assert tell_apart(groups, asked, trials=ENOUGH).keys() == {0, 10}
    assert asked.asked == [
        [0, 20, 40, 10, 30, 50],
        [0, 20, 40], [10, 30, 50],  # between a and b, the middle
        [10, 30], [50],  # between b and c, before a is taken up
        [0], [20, 40],
        [10], [30],
    ]  # fmt: skip


def test_what_is_not_told_apart_in_time_is_refused_with_its_kind_only() -> None:
    groups = named(["a1", "b1", "a2", "b2", "a3", "b3"])
    found = tell_apart(groups, Trials([20]), trials=3)
    assert found == dict.fromkeys([0, 20, 40], "too costly to tell apart (one of 3 groups: broken by [20])")


@pytest.mark.parametrize("fault", [lambda some: None, lambda some: pytest.fail("asked about nothing")])
def test_no_groups(fault: Callable[[Sequence[int]], str | None]) -> None:
    assert tell_apart({}, fault, trials=ENOUGH) == {}
