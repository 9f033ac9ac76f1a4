"""The permutation check finds wrong channel maps, and finds nothing wrong with right ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup, Member
from mint_compress.graph.permutation_check import map_faults
from mint_compress.graph.reference import reference_copy, reference_run


def group_of(name: str, group: str) -> ChannelGroup:
    (found,) = [g for g in find_groups(build(name), images(name)) if g.name == group]
    return found


def swapped(group: ChannelGroup, layer: str, first: int, second: int) -> ChannelGroup:
    """The group with two positions exchanged in what one reader is said to read."""

    def wrong(member: Member) -> Member:
        if (member.layer, member.side) != (layer, "in"):
            return member
        exchange = np.arange(group.width)
        exchange[[first, second]] = second, first
        return replace(member, positions=exchange[member.positions])

    return replace(group, members=tuple(wrong(m) for m in group.members))


def fault(name: str, group: ChannelGroup, model: nn.Module | None = None) -> str | None:
    copy, inputs = reference_copy(model or build(name), (images(name),))
    return map_faults(reference_run(copy, inputs), [group], torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize(
    ("name", "group", "reader"),
    [
        ("chain", "conv1", "conv2"),
        ("residual", "b.conv2", "a.conv1"),
        ("concat", "right", "join"),
        ("grouped", "conv2", "conv3"),
        ("flatten", "conv", "fc1"),
        ("norm_mlp", "fc1", "fc2"),
        ("depthwise", "dw", "project"),
    ],
)
def test_two_positions_swapped_in_one_reader_are_caught(name: str, group: str, reader: str) -> None:
    right = group_of(name, group)
    assert fault(name, right) is None
    for first in range(right.width):
        for second in range(first):
            reason = fault(name, swapped(right, reader, first, second))
            assert reason is not None and reason.startswith("wrong channel map")


def test_a_branch_that_is_shut_hides_no_wrong_map() -> None:
    model = build("layer_scale")
    nn.init.zeros_(model.get_parameter("scale"))
    (stream,) = [g for g in find_groups(model, images("layer_scale")) if "stem" in g.producers]
    assert stream.prunable
    reason = fault("layer_scale", swapped(stream, "branch", 0, 3), model)
    assert reason is not None and reason.startswith("wrong channel map")


def test_every_wrong_map_of_a_narrow_group_is_caught() -> None:
    """Also those that a single cyclic shift of the positions cannot tell from the right one."""
    right = group_of("concat", "right")
    for order in permutations(range(3)):
        wrong = tuple(
            replace(m, positions=np.array(order)[m.positions]) if m.side == "in" else m for m in right.members
        )
        reason = fault("concat", replace(right, members=wrong))
        assert (reason is None) == (order == (0, 1, 2)), order


class NoDerivative(torch.autograd.Function):
    """The identity, for which nobody has written a derivative, or a wrong one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise LookupError("no derivative")


class Opaque(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.one, self.two, self.unused = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.two.bias.mul_(1)  # PyTorch refuses that while gradients are kept
        hidden = self.one(x)
        result: Tensor = self.two(hidden if self.in_place else NoDerivative.apply(hidden))
        return result + 0 * self.unused(hidden)


@pytest.mark.parametrize("in_place", [False, True])
def test_where_no_gradient_can_be_had_permuting_the_makers_shows_what_has_an_effect(in_place: bool) -> None:
    right = np.arange(6)
    group = ChannelGroup(
        "one",
        6,
        (
            Member("one", "linear", "out", right, right, total=6),
            Member("two", "linear", "in", right, right, total=6),
            Member("unused", "linear", "in", right, right, total=6),
        ),
    )
    four = np.arange(4)
    idle = ChannelGroup("unused", 4, (Member("unused", "linear", "out", four, four, total=4),))
    copy, inputs = reference_copy(Opaque(in_place=in_place), (torch.randn(5, 3),))
    reference = reference_run(copy, inputs)
    assert map_faults(reference, [group, idle], torch.Generator().manual_seed(0)) == [
        None,
        "map not verifiable: the outputs do not depend on it",
    ]
    reason = map_faults(reference, [swapped(group, "two", 0, 5)], torch.Generator().manual_seed(0))[0]
    assert reason is not None and reason.startswith("wrong channel map")
