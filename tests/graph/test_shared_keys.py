"""Heads that share keys and values go with them: as many queries for each that is left."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.finding import find_groups
from mint_compress.nn.contexts import seeded
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_


class Shared(nn.Module):
    """Six heads for queries, three for keys and values, each five wide (Ainslie et al., 2023)."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, self.heads, self.shared, self.width = spelling, 6, 3, 5
        self.inputs = nn.Linear(4, 16)
        self.q, self.k, self.v = nn.Linear(16, 30), nn.Linear(16, 15), nn.Linear(16, 15)
        self.out, self.head = nn.Linear(30, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, self.width).transpose(1, 2)
        k, v = (y(x).view(n, t, self.shared, self.width).transpose(1, 2) for y in (self.k, self.v))
        each = self.heads // self.shared
        if self.spelling == "interleaved":
            k, v = (y.repeat_interleave(each, 1) for y in (k, v))
        elif self.spelling == "expanded":
            k, v = (y[:, :, None].expand(-1, -1, each, -1, -1).flatten(1, 2) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.spelling == "asked for")
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, t, -1))).mean(1))


@pytest.mark.parametrize("spelling", ["asked for", "interleaved", "expanded"])
def test_a_shared_head_goes_with_its_queries(spelling: str) -> None:
    with seeded(0):
        model, x = Shared(spelling).eval(), torch.randn(2, 7, 4)
    groups = find_groups(model, x)
    (heads,) = (g for g in groups if g.name == "q")
    assert heads.prunable and heads.width == 3
    plan = make_plan(groups, {"q": np.array([False, True, False])}, asked=None)
    deaf = copy.deepcopy(model)
    deaf.out.weight.data[:, 10:20] = 0  # queries 2 and 3
    small = prune_(copy.deepcopy(model), plan)
    assert (small.q.out_features, small.k.out_features, small.heads, small.shared) == (20, 10, 4, 2)
    torch.testing.assert_close(small(x), deaf(x))
