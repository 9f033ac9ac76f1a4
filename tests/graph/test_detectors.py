"""torchvision's detectors: groups are proved by what heads say; frozen normalisations are cut."""

from __future__ import annotations

import copy

import detectors
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.nn.detectors import everything_raw
from mint_compress.nn.layers import STATISTICS
from mint_compress.planning.choices import make_plan
from mint_compress.repair.adjacency import trace
from mint_compress.repair.compensation import compensate_
from mint_compress.surgery.pruning import prune_

IMAGES = torch.rand(2, 3, detectors.SIZE, detectors.SIZE, generator=torch.Generator().manual_seed(0))


def test_all_but_the_heads_outputs_can_go_behind_regions_as_well() -> None:
    groups = {g.name: g for g in find_groups(detectors.in_two_stages(), IMAGES[:1])}
    heads = {
        "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor",
    }  # fmt: skip
    assert {name for name, g in groups.items() if not g.prunable} == heads
    (levels,) = (g for g in groups.values() if "backbone.fine" in g.producers)
    assert {"backbone.fine", "backbone.coarse"} <= set(levels.producers)
    readers = {(m.layer, len(m.channels)) for m in levels.members if m.side == "in"}
    assert readers == {
        ("rpn.head.conv.0.0", 12),
        ("roi_heads.box_head.1", 108),
        ("roi_heads.mask_head.0", 12),
    }


def test_without_channels_heads_say_what_they_say_when_those_are_ignored() -> None:
    model = detectors.in_two_stages()
    groups = find_groups(model, IMAGES[:1])
    (levels,) = (g for g in groups if "backbone.fine" in g.producers)
    gone = [1, 5, 11]
    plan = make_plan(groups, {levels.name: np.isin(np.arange(12), gone)}, asked=None)
    assert after_trial(model, IMAGES[:1], groups, plan) == groups
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    with torch.no_grad():
        for name in ("rpn.head.conv.0.0", "roi_heads.mask_head.0"):
            deaf.get_submodule(name).weight[:, gone] = 0  # type: ignore[index, operator]
        first = deaf.get_submodule("roi_heads.box_head.1").weight.reshape(32, 12, 9)  # type: ignore[operator, union-attr]
        first[:, gone] = 0
        for a, b in ((everything_raw(m, IMAGES)[key] for m in (small, deaf)) for key in ("box", "mask")):
            torch.testing.assert_close(a, b)


class Frozen(nn.Module):
    """A chain with normalisations that are held in buffers."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), kind(8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 2)
        for name, low, high in (
            ("weight", 0.5, 2),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            self.norm.get_buffer(name).uniform_(low, high)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))
        return result


class DetrFrozenBatchNorm2d(nn.Module):
    """A copy with the same buffers, as the transformers package has one for each of its detectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in STATISTICS:
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (self.get_buffer(name).reshape(1, -1, 1, 1) for name in STATISTICS)
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + bias - mean * scale


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, DetrFrozenBatchNorm2d])
def test_a_frozen_normalisation_loses_the_channels_of_its_layer_and_takes_its_intercept(
    kind: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    model, x = Frozen(kind).eval(), torch.randn(2, 3, 6, 6)
    groups = find_groups(model, x[:1])
    first = groups[0]
    assert [(m.layer, m.kind, m.side) for m in first.members] == [
        ("first", "conv", "out"), ("norm", "norm", "both"), ("second", "conv", "in"),
    ]  # fmt: skip
    plan = make_plan(groups, {"first": np.isin(np.arange(8), [0, 3, 6])}, asked=None)
    small, deaf = prune_(copy.deepcopy(model), plan), copy.deepcopy(model)
    assert torch.equal(small.norm.running_var, model.norm.running_var[[1, 2, 4, 5, 7]])
    assert not list(small.norm.parameters())
    with torch.no_grad():
        deaf.second.weight[:, [0, 3, 6]] = 0
        torch.testing.assert_close(small(x), deaf(x))
    assert trace(small, x).norms == {"first": "norm"}
    compensate_(small, model, plan, [x])
    assert bool(torch.isfinite(small(x)).all())
