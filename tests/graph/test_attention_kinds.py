"""Attention as public networks write it: over channels, with kept biases, heads a share of the stream."""

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

HEADS, WIDTH, PLACES = 4, 5, 7


class Attention(nn.Module):
    """Four heads, each five wide, between layers that read and write a stream."""

    def __init__(self, stream: int = 12) -> None:
        super().__init__()
        self.heads = HEADS
        self.inputs = nn.Linear(3, stream)
        self.q, self.k, self.v = (nn.Linear(stream, HEADS * WIDTH) for _ in range(3))
        self.out, self.head = nn.Linear(HEADS * WIDTH, stream), nn.Linear(stream, 2)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        y = self.mixed(*(self.split(layer(x)) for layer in (self.q, self.k, self.v)))
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class OverChannels(Attention):
    """Each channel attends to those of its head (Ding et al., "DaViT", 2022; Ali et al., "XCiT", 2021)."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.normalize(q, dim=2).transpose(2, 3) @ F.normalize(k, dim=2)
        return (weights.softmax(3) @ v.transpose(2, 3)).transpose(2, 3)


class KeptBiases(Attention):
    """What is added for each pair of places is computed once (Graham et al., "LeViT", 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(HEADS, PLACES))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> KeptBiases:
        self.kept = {}
        return super().train(mode)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(PLACES)
        if "biases" not in self.kept:
            self.kept["biases"] = self.biases[:, (places[:, None] - places).abs()]
        weights = q @ k.transpose(2, 3) / WIDTH**0.5 + self.kept["biases"]
        return weights.softmax(3) @ v


class SharedTable(Attention):
    """What queries say of distances is looked up in a table for all heads (Li et al., "ViTDet", 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(PLACES, WIDTH))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(PLACES)
        apart = self.table[(places[:, None] - places).abs()]
        said = torch.einsum("bhnc,nkc->bhnk", q, apart)
        return (said + q @ k.transpose(2, 3)).softmax(3) @ v


class Normalised(Attention):
    """One norm for the queries of all heads, one for their keys (Dehghani et al., "ViT-22B", 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (norm(t) for norm, t in zip(self.norms, (q, k), strict=True))
        return F.scaled_dot_product_attention(q, k, v)


class NormalisedByHand(Attention):
    """Such norms with scales that are bare parameters, as language models write them."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.randn(WIDTH) for _ in range(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (
            scale * (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6))
            for scale, t in zip(self.scales, (q, k), strict=True)
        )
        return F.scaled_dot_product_attention(q, k, v)


class Pooled(Attention):
    """The same filters for the maps of all heads, which leave fewer places (Li et al., "MViTv2", 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, 3, stride, 1, groups=WIDTH, bias=False) for stride in (1, 2, 2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            norm(pool(t.flatten(0, 1).transpose(1, 2)).unflatten(0, (len(t), -1)).transpose(2, 3))
            for pool, norm, t in zip(self.pools, self.norms, (q, k, v), strict=True)
        )
        seen = q @ k.transpose(2, 3)
        seen[:, :, 1:] = seen[:, :, 1:] + q[:, :, 1:].mean(3, keepdim=True)
        return seen.softmax(3) @ v


class Deformable(Attention):
    """Queries say where to look, beside places that all heads share (Zhu et al., "Deformable DETR", 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Buffer(torch.randn(PLACES, 3))
        self.shared = nn.Linear(3, WIDTH)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps = v.transpose(2, 3).flatten(0, 1).unsqueeze(2)
        at = (q + self.shared(self.points)).tanh().flatten(0, 1)
        seen = F.grid_sample(maps, torch.stack([at, at], 3), align_corners=False)
        weights = k.softmax(3).flatten(0, 1).unsqueeze(1)
        return (seen * weights).sum(3).unflatten(0, (len(v), -1)).transpose(2, 3)


KINDS = [OverChannels, KeptBiases, SharedTable, Normalised, NormalisedByHand, Pooled, Deformable]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_go_as_a_whole(kind: type[Attention]) -> None:
    with seeded(0):
        model, x = kind().eval(), torch.randn(2, PLACES, 3)
    model(x)  # which keeps what it computes
    groups = find_groups(model, x)
    (heads,) = (g for g in groups if g.name == "q")
    assert heads.prunable and heads.width == HEADS
    plan = make_plan(groups, {"q": np.array([False, True, False, True])}, asked=None)
    deaf = copy.deepcopy(model)
    deaf.out.weight.data[:, WIDTH : 2 * WIDTH] = 0
    deaf.out.weight.data[:, 3 * WIDTH :] = 0
    small = prune_(copy.deepcopy(model), plan)
    assert (small.q.out_features, small.v.out_features, small.heads) == (2 * WIDTH, 2 * WIDTH, 2)
    torch.testing.assert_close(small(x), deaf(x))


class Divided(nn.Module):
    """The heads' width is the stream's divided by their number: both lose the same share."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.inputs = nn.Linear(3, HEADS * WIDTH)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.out, self.head = nn.Linear(HEADS * WIDTH, HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


def test_heads_go_with_a_share_of_the_stream() -> None:
    with seeded(0):
        model, x = Divided().eval(), torch.randn(2, PLACES, 3)
    groups = find_groups(model, x)
    stream, head = groups
    assert stream.prunable and not head.prunable
    assert [(len(positions), share) for positions, share in stream.shares] == [(20, 5), (4, 1)]
    gone = np.zeros(24, dtype=bool)
    gone[[2, 3, 5, 7, 11, 21]] = True  # five of the stream, and the second head
    deaf = copy.deepcopy(model)
    for reader in (deaf.qkv, deaf.head):
        reader.weight.data[:, [2, 3, 5, 7, 11]] = 0
    deaf.out.weight.data[:, WIDTH : 2 * WIDTH] = 0
    small = prune_(copy.deepcopy(model), make_plan(groups, {stream.name: gone}, asked=None))
    assert (small.inputs.out_features, small.qkv.out_features, small.heads) == (15, 45, 3)
    torch.testing.assert_close(small(x), deaf(x))


class Talking(nn.Module):
    """Heads are mixed before the softmax and after it (Touvron et al., "CaiT", 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.inputs = nn.Linear(3, HEADS * WIDTH)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)
        self.out, self.head = nn.Linear(HEADS * WIDTH, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = self.before((q @ k.transpose(2, 3)).permute(0, 2, 3, 1)).softmax(2)
        y = self.after(weights).permute(0, 3, 1, 2) @ v
        return self.head(self.out(y.transpose(1, 2).reshape(n, t, c)).mean(1))


def test_heads_that_talk_need_not_be_the_same_on_both_sides() -> None:
    with seeded(0):
        model, x = Talking().eval(), torch.randn(2, PLACES, 3)
    groups = find_groups(model, x)
    stream, between = (next(g for g in groups if g.name == name) for name in ("inputs", "before"))
    assert stream.prunable and between.prunable and between.width == HEADS
    assert [(len(positions), share) for positions, share in stream.shares] == [(20, 5), (4, 1), (4, 1)]
    gone = np.zeros(28, dtype=bool)
    gone[[0, 1, 2, 3, 4, 20 + 1, 24 + 3]] = True  # of the stream; keys' second head, values' last
    plan = make_plan(groups, {"inputs": gone}, asked=None)
    deaf = copy.deepcopy(model)
    deaf.qkv.weight.data[:, :5] = 0
    deaf.before.weight.data[:, 1] = 0
    deaf.out.weight.data[:, 3 * WIDTH :] = 0
    small = prune_(copy.deepcopy(model), plan)
    assert (small.qkv.out_features, small.heads, small.before.in_features) == (45, 3, 3)
    assert (small.before.out_features, small.after.out_features) == (HEADS, 3)
    torch.testing.assert_close(small(x), deaf(x))


def test_heads_of_a_layer_that_is_ignored_stay() -> None:
    with seeded(0):
        model, x = Normalised().eval(), torch.randn(2, PLACES, 3)
    groups = find_groups(model, x, ignore=["k"])
    assert [g.name for g in groups if g.prunable] == ["inputs"]
