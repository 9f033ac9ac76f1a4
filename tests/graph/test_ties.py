"""Widths that a forward pass takes from the shape of another tensor: they shrink by the same share."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from networks import build, conv, images
from torch import Tensor, nn

from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.labels import Reading
from mint_compress.nn.contexts import seeded
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_


class Spatial(nn.Module):
    """Attention over pixels as YOLO has it: what the heads give takes the shape of what they were given."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width, self.key = heads, width // heads, 3
        self.stem = conv(3, width, 1)
        self.qkv = conv(width, heads * (2 * self.key + self.width), 1)
        self.place, self.out = conv(width, width, groups=width), conv(width, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        n, c, h, w = x.shape
        q, k, v = (
            self.qkv(x)
            .view(n, self.heads, 2 * self.key + self.width, h * w)
            .split([self.key, self.key, self.width], 2)
        )
        y = (v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)).view(n, c, h, w)
        y = self.out(y + self.place(v.reshape(n, c, h, w)))
        result: Tensor = self.head((x + y).mean((2, 3)))
        return result


def noise() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def made() -> Any:
    torch.manual_seed(0)
    return Spatial().eval()


def test_heads_go_with_as_large_a_share_of_the_stream() -> None:
    model = made()
    groups = find_groups(model, noise()[:1])
    (group,) = (g for g in groups if g.prunable)
    assert group.name == "stem" and group.width == 24 + 4
    assert [(len(own), share) for own, share in group.shares] == [(24, 6), (4, 1)]
    gone = [0, 2, 4, 6, 8, 10, 24 + 2]
    plan = make_plan(groups, {"stem": np.isin(np.arange(28), gone)}, asked=None)
    assert plan.sizes == {"": {"heads": 3}}
    assert all(g.prunable for g in after_trial(model, noise()[:1], groups, plan) if g is group)
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    with torch.no_grad():  # readers that ignore the channels, and the head of which the values are zero
        for layer in (deaf.qkv, deaf.head):
            layer.weight[:, gone[:-1]] = 0
        deaf.out.weight[:, 12:18] = 0
        torch.testing.assert_close(small(noise()), deaf(noise()))
    # a head too few, or a channel
    for wrong in ([0, 2, 4, 6, 8, 10], [0, 1, 26]):
        plan = make_plan(groups, {"stem": np.isin(np.arange(28), wrong)}, asked=None)
        (tried,) = (g for g in after_trial(model, noise()[:1], groups, plan) if g.name == "stem")
        assert not tried.prunable


def test_sizes_that_are_followed_are_shapes_all_the_same() -> None:
    class Asking(nn.Module):
        """Does with a shape what forward passes do."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3, 6), conv(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            assert x.shape == torch.Size([*x.shape]) and x.shape[1:].numel() == x[0].numel()
            assert (len(x.shape), x.size(1), x.size()[1] // 2, -x.shape[-1]) == (4, 6, 3, -x.size(-1))
            y = torch.zeros(*x.shape) + x.new_zeros(x.shape) + torch.ones(x.shape[:2]).sum()
            result: Tensor = self.two(x + y).flatten(1)
            return result

    recorder = Recorder(Asking().eval(), Reading.SIZES)
    recorder.run((noise(),))
    assert {t.layer for t in recorder.touches} == {"one", "two"}


def test_shuffled_channels_go_in_pairs_and_as_many_of_the_others() -> None:
    """One half is shuffled with what comes of the other: in pairs there, and by rank in the other."""
    model, x = build("shuffled").double(), images("shuffled").double()
    groups = find_groups(model, x)
    (group,) = (g for g in groups if g.name == "stem")
    assert group.prunable and group.producers == ("stem", "inner2")
    places = {(m.layer, m.side): m.positions.tolist() for m in group.members}
    assert places["stem", "out"][:4] == places["inner2", "out"] == [0, 1, 2, 3]
    assert places["after", "in"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [own.tolist() for own, _ in group.shares] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    plan = make_plan(groups, {"stem": np.isin(np.arange(8), [0, 2, 6, 7])}, asked=None)
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    with torch.no_grad():
        deaf.inner1.weight[:, [2, 3]] = 0  # type: ignore[union-attr, index]
        deaf.after.weight[:, [0, 1, 4, 5]] = 0  # type: ignore[union-attr, index]
        torch.testing.assert_close(small(x), deaf(x))


def test_units_of_shufflenet_are_followed_through_all_their_shuffles() -> None:
    """A stage of four units, whose first half passes by every branch, as torchvision has it."""
    from torchvision.models import ShuffleNetV2

    torch.manual_seed(0)
    model = ShuffleNetV2([1, 1, 4], [8, 8, 16, 32, 24], num_classes=3).eval()
    groups = find_groups(model, torch.randn(1, 3, 64, 64))
    (stage,) = (g for g in groups if g.name == "stage4.0.branch1.2")
    assert stage.prunable and len(stage.producers) == 5
    # what passes by every branch has two positions of 16 channels each, what is read first eight of two
    assert [(len(own), share) for own, share in stage.shares] == [(2, 1), (2, 1), (4, 2), (8, 4)]


class Counted(nn.Module):
    """Two layers whose runs of channels are counted by one attribute, as the heads of keys and of values."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 4
        self.one, self.two = nn.Linear(3, 4 * 5), nn.Linear(3, 4 * 2)
        self.mine, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        own, others = (layer(x).view(len(x), self.runs, -1) for layer in (self.one, self.two))
        result: Tensor = self.mine(own.tanh().mean(2)) * self.other(others.tanh().mean(2))
        return result


def test_what_one_attribute_counts_loses_as_much_and_not_the_same() -> None:
    with seeded(0):
        model, x = Counted().eval(), torch.randn(6, 3)
    groups = find_groups(model, x)
    (both,) = (g for g in groups if g.prunable)
    assert [(len(own), share) for own, share in both.shares] == [(4, 1), (4, 1)]
    plan = make_plan(groups, {both.name: np.isin(np.arange(8), [1, 4 + 3])}, asked=None)
    assert plan.sizes == {"": {"runs": 3}}
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    assert (small.one.out_features, small.two.out_features) == (15, 6)
    with torch.no_grad():
        deaf.mine.weight[:, 1] = 0
        deaf.other.weight[:, 3] = 0
        torch.testing.assert_close(small(x), deaf(x))
