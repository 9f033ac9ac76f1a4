"""What is predicted of products of activations, against what is counted once channels are gone."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from networks import build, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.costs import Dimension, Mask, Network, Product
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.nn.counting import module_macs, parameters
from mint_compress.planning.search import make_plan
from mint_compress.surgery.pruning import prune_


class OneHead(nn.Module):
    """Attention with one head: queries and keys of one width, values of another."""

    def __init__(self, *, called: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.q, self.k, self.v = (nn.Linear(6, width) for width in (4, 4, 7))
        self.proj = nn.Linear(7, 6)
        self.head = nn.Linear(6, 3)
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.q(x) if self.called else F.linear(x, self.q.weight, self.q.bias)
        x = x + self.proj((q @ self.k(x).transpose(-2, -1)).softmax(-1) @ self.v(x))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """timm's attention between two linear layers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(5, 12), attention, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.attention(x)).mean(1))  # type: ignore[no-any-return]


class MixingFirst(nn.Linear):
    """A linear layer that multiplies tokens with a constant before it computes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mixing", torch.randn(4, 4))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.bmm(self.mixing.expand(len(input), 4, 4), input))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(5, 8), MixingFirst(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.fc2(F.gelu(self.fc1(x)))).mean(1))  # type: ignore[no-any-return]


def tokens(count: int = 9) -> Tensor:
    return torch.randn(2, count, 5, generator=torch.Generator().manual_seed(0))


def attention(kind: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    if kind == "windows":
        from timm.models.swin_transformer import WindowAttention

        return WindowAttention(12, 4, window_size=3)
    made: nn.Module = timm.layers.Attention(12, 4, qkv_bias=True)
    made.fused_attn = kind == "fused"
    return made


def without(groups: list[ChannelGroup], **removed: list[int]) -> dict[str, Mask]:
    """Masks of the positions that go, by group; a dot in a name is written as two underscores."""
    masks = {}
    for name, positions in removed.items():
        group = next(g for g in groups if g.name == name.replace("__", "."))
        assert group.prunable, group.reason
        masks[group.name] = np.isin(np.arange(group.width), positions)
    return masks


def predicted_and_counted(
    model: nn.Module, x: Tensor, groups: list[ChannelGroup], masks: Mapping[str, Mask]
) -> tuple[tuple[int, int], tuple[int, int]]:
    plan = make_plan(groups, masks, asked=None)
    pruned = prune_(copy.deepcopy(model), plan)
    assert parameters(pruned) == plan.parameters[1]
    return plan.macs, (module_macs(model, x).total, module_macs(pruned, x).total)


@pytest.mark.parametrize("kind", ["fused", "taken apart", "windows"])
@pytest.mark.parametrize("gone", [[0], [1, 3], [0, 1, 2]])
def test_products_shrink_with_the_heads(kind: str, gone: list[int]) -> None:
    model, x = Heads(attention(kind)).eval(), tokens()
    groups = find_groups(model, x)
    network = groups[0].network
    assert sum(p.macs for p in network.products) == 2 * 9 * 9 * 12 and network.unpredicted == ()
    masks = without(groups, attention__qkv=gone, embed=[2, 5, 7])
    # whole heads go, so each of the two products keeps that share; the stream does not matter to them
    assert network.product_macs(masks) == 2 * 9 * 9 * 12 * (4 - len(gone)) // 4
    assert network.product_macs_of("attention.qkv") == 2 * 9 * 9 * 12
    assert network.product_macs_of("embed") == 0
    predicted, counted = predicted_and_counted(model, x, groups, masks)
    assert predicted == counted


@pytest.mark.parametrize("called", [True, False])
def test_each_product_follows_its_own_channels(called: bool) -> None:
    model, x = OneHead(called=called).eval(), tokens()
    groups = find_groups(model, x)
    network = groups[0].network
    assert [p.macs for p in network.products] == [9 * 9 * 4, 9 * 9 * 7] and network.unpredicted == ()
    assert [network.layers[n].called for n in ("q", "k")] == [called, True]
    assert network.layers["q"].macs == 9 * 6 * 4
    values = without(groups, v=[0, 4, 6])
    assert network.product_macs(values) == 9 * 9 * (4 + 4)
    predicted, counted = predicted_and_counted(model, x, groups, values)
    assert predicted == counted


def test_where_products_cannot_be_followed_they_count_as_they_are() -> None:
    model, x = Mixed().eval(), tokens(4)
    groups = find_groups(model, x)
    network = groups[0].network
    assert [p.module for p in network.unpredicted] == ["fc2"]
    assert network.macs == module_macs(model, x).total == 4 * (5 * 8 + 8 * 6) + 18 + 4 * 4 * 8
    assert network.product_macs(without(groups, fc1=[0, 1])) == 4 * 4 * 8
    predicted, counted = predicted_and_counted(model, x, groups, without(groups, fc1=[0, 1]))
    assert predicted[0] == counted[0] and predicted[1] - counted[1] == 4 * 4 * 2


@pytest.mark.parametrize("name", ["chain", "grouped", "transposed", "flatten", "windows", "auxiliary"])
def test_without_products_the_layers_are_all(name: str) -> None:
    model, x = build(name), images(name)
    network = find_groups(model, x)[0].network
    assert network.products == () and network.product_macs({}) == 0
    assert network.macs == sum(module_macs(model, x).layers.values())
    assert all(shape.called for shape in network.layers.values() if shape.macs)


def test_a_layer_that_owns_nothing_is_counted() -> None:
    first, second = (nn.Linear(6, 6, bias=False) for _ in range(2))
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.Linear(6, 3))
    network = find_groups(model.eval(), torch.randn(1, 6))[0].network
    assert "2" not in network.layers and network.macs == 36 + 36 + 18 and network.unpredicted == ()


def test_a_product_scales_with_each_of_its_dimensions() -> None:
    rows = Dimension(6, {"a": np.array([0, 0, 1, 1]), "b": np.array([2])})
    columns = Dimension(4, {"a": np.array([0, 1, 2, 3])})
    product = Product("m", 6 * 4 * 5, (rows, columns))
    network = Network({}, (product, Product("n", 7)))
    masks = {"a": np.array([True, False, False, False]), "b": np.array([False, False, True])}
    assert (rows.left(masks), columns.left(masks), rows.left({})) == (3, 3, 6)
    assert product.after(masks) == 3 * 3 * 5 and product.after({}) == product.macs
    assert network.product_macs(masks) == 3 * 3 * 5 + 7 and network.macs == 127
    assert product.following("a") == pytest.approx(120 * (4 / 6 + 1))
    assert product.following("c") == 0
