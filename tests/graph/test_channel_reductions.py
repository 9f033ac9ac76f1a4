"""Means, norms and maxima over channels: over the channels that are left, and only these pass for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.nn.copying import copied
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_

WIDTH = 16
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Trunk(nn.Module):
    """Two convolutions, after each of which something is computed with their channels."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.between = between or (lambda x: x)
        self.a, self.b, self.c = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(F.silu(self.between(self.b(F.silu(self.between(self.a(x)))))))
        return result


def found(model: nn.Module, x: Tensor = IMAGE) -> dict[str, ChannelGroup]:
    return {g.name: g for g in find_groups(model.eval(), x)}


def trunk(between: Callable[[Tensor], Tensor]) -> Trunk:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Trunk(between).eval()


def written_out(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(1, keepdim=True) + 1e-5).sqrt()


def of_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def last(x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    return ((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)).permute(0, 3, 1, 2)


def tokens(x: Tensor) -> Tensor:
    """Over channels and places at once, flattened."""
    flat = x.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).reshape(x.shape)


def spatial_attention(x: Tensor) -> Tensor:
    """CBAM's (Woo et al., 2018), its convolution a fixed one."""
    maps = torch.cat([x.max(1, keepdim=True).values, x.mean(1).unsqueeze(1)], 1)
    return x * torch.sigmoid(F.conv2d(maps, maps.new_full((1, 2, 3, 3), 0.1), padding=1))


OVER_CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
    "rms_norm": lambda x: F.rms_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
    "written out": written_out,
    "var_mean": of_var_mean,
    "channels last": last,
    "with the places": tokens,
    "one group": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "L1": lambda x: F.normalize(x, p=1.0, dim=1),
    "divided by the norm": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-6),
    "linalg": lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "sum of squares": lambda x: x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-6),
    "RMS": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "expanded": lambda x: x - x.mean(1, keepdim=True).expand_as(x),
    "gate": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "amax": lambda x: x - x.amax(1, keepdim=True),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "CBAM": spatial_attention,
}


@pytest.mark.parametrize("between", OVER_CHANNELS.values(), ids=OVER_CHANNELS)
def test_one_answer_for_every_spelling(between: Callable[[Tensor], Tensor]) -> None:
    model = trunk(between)
    groups = found(model)
    assert {n: g.reason for n, g in groups.items() if n != "c"} == {"a": None, "b": None}
    lost = {"a": np.arange(WIDTH) % 3 == 0, "b": np.arange(WIDTH) > 9}
    plan = make_plan(list(groups.values()), lost, asked=None)
    assert all(g.prunable for g in after_trial(model, IMAGE, list(groups.values()), plan) if g.name != "c")
    # what is left is the same network as one that never had these channels
    a, b = (torch.from_numpy(~lost[n]) for n in "ab")
    x = F.silu(between(F.conv2d(IMAGE, model.a.weight[a], model.a.bias[a])))  # type: ignore[index]
    x = F.silu(between(F.conv2d(x, model.b.weight[b][:, a], model.b.bias[b])))  # type: ignore[index]
    expected = F.conv2d(x, model.c.weight[:, b], model.c.bias)
    torch.testing.assert_close(prune_(copied(model), plan)(IMAGE), expected, atol=1e-6, rtol=1e-5)


def halves(x: Tensor) -> Tensor:
    """The means of two halves: where one ends is written down."""
    one, other = x[:, : WIDTH // 2].mean(1, keepdim=True), x[:, WIDTH // 2 :].mean(1, keepdim=True)
    return x * torch.sigmoid(one) + other


def runs(x: Tensor) -> Tensor:
    """The mean of each four channels beside each other."""
    n, _, h, w = x.shape
    return x + x.reshape(n, -1, 4, h, w).mean(2, keepdim=True).expand(n, -1, 4, h, w).reshape(x.shape)


def along(x: Tensor) -> Tensor:
    """ECA (Wang et al., 2020): a convolution along the channels, whose order counts."""
    squeezed = F.conv1d(x.mean((2, 3))[:, None], x.new_tensor([[[0.3, 1.0, -0.5]]]), padding=1)
    return x * torch.sigmoid(squeezed).movedim(1, 2)[..., None]


def over_a_threshold_of_its_index(x: Tensor) -> Tensor:
    return torch.where(x.mean(1, keepdim=True) > torch.linspace(-0.3, 0.3, x.shape[1])[:, None, None], x, 0)


def over_a_fixed_threshold(x: Tensor) -> Tensor:
    return torch.where(x.mean(1, keepdim=True) > torch.linspace(-0.3, 0.3, WIDTH)[:, None, None], x, 0)


def first(x: Tensor) -> Tensor:
    return x - x[:, :4].mean(1, keepdim=True)


def by_the_width(x: Tensor) -> Tensor:
    """Shape and values from the width that is written down."""
    return x * (x.mean(1, keepdim=True) * (x.shape[1] == WIDTH))


def largest_place(x: Tensor) -> Tensor:
    """Which channel is the largest counts."""
    return x * x.max(1, keepdim=True).indices


@pytest.mark.parametrize(
    "between",
    [
        halves,
        along,
        over_a_threshold_of_its_index,
        over_a_fixed_threshold,
        first,
        by_the_width,
        largest_place,
    ],
)
def test_what_depends_on_places_or_widths_is_refused(between: Callable[[Tensor], Tensor]) -> None:
    groups = found(trunk(between))
    assert not groups["a"].prunable and not groups["b"].prunable


def test_runs_of_channels_that_are_reduced_go_as_a_whole() -> None:
    groups = found(trunk(runs))
    assert groups["a"].prunable and groups["a"].width == WIDTH // 4


class _Normalise(torch.autograd.Function):
    """NAFNet's (Chen et al., 2022), which has a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        ctx.save_for_backward(y, weight)
        return weight.view(1, -1, 1, 1) * y + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        y, weight = ctx.saved_tensors
        return gradient * weight.view(1, -1, 1, 1), (gradient * y).sum((0, 2, 3)), gradient.sum((0, 2, 3))


class LayerNorm2d(nn.Module):
    """Over channels, with parameters of its own: NAFNet's, or written in the forward pass as ConvNeXt's."""

    def __init__(self, *, own_derivative: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.own_derivative = own_derivative

    def forward(self, x: Tensor) -> Tensor:
        if self.own_derivative:
            return _Normalise.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@pytest.mark.parametrize("own_derivative", [False, True])
def test_a_norm_with_parameters_of_its_own_loses_them_with_the_channels(own_derivative: bool) -> None:
    groups = found(Trunk(LayerNorm2d(own_derivative=own_derivative)))
    (group,) = [g for g in groups.values() if set(g.producers) == {"a", "b"}]  # the norm is called twice
    assert group.prunable
    assert {"between.weight", "between.bias"} <= {m.layer for m in group.members if m.side == "both"}


class OwnForward(nn.LayerNorm):
    """A LayerNorm for images that computes its statistics by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return written_out(x) * self.weight[:, None, None] + self.bias[:, None, None]


def test_a_norm_with_a_forward_pass_of_its_own_is_the_same() -> None:
    (group,) = [g for g in found(Trunk(OwnForward(WIDTH))).values() if set(g.producers) == {"a", "b"}]
    assert group.prunable and {"between"} == {m.layer for m in group.members if m.kind == "norm"}


class SpatialAttention(nn.Module):
    """CBAM's, with a convolution that reads no channels of the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(maps))


def test_what_reads_a_mean_over_channels_keeps_none_of_them() -> None:
    groups = found(Trunk(SpatialAttention()))
    assert groups["a"].prunable and groups["b"].prunable
    assert {m.layer for m in groups["a"].members} == {"a", "b"}
    assert groups["between.conv"].reason == "its only channel scales others"
