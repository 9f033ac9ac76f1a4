"""The one view of a layer gives its sizes and the places of its channels, whatever kind it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mint_compress.nn import layers

KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(4, 6, 3), (4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 2)), (4, 7, 8)),
    "3d": (nn.Conv3d(4, 6, 2), (4, 3, 4, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (4, 5, 5)),
    "grouped transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
    "linear": (nn.Linear(4, 6), (4,)),
    "tokens": (nn.Linear(4, 6), (5, 4)),
    "grid": (nn.Linear(4, 6), (3, 2, 4)),
}


@pytest.mark.parametrize("name", KINDS)
def test_sizes_are_those_of_what_goes_in_and_out_and_of_the_weight(name: str) -> None:
    layer, shape = KINDS[name]
    x = torch.randn(2, *shape)
    y = layer(x)
    assert x.shape[layers.channel_dim(layer)] == layers.in_channels(layer) == 4
    assert (
        y.shape[layers.channel_dim(layer)] == layers.out_channels(layer) == (4 if name == "depthwise" else 6)
    )
    weight = layer.get_parameter("weight")
    assert layers.fan_in(layer) * layers.out_channels(layer) == weight.numel()
    assert layers.is_transposed(layer) == ("transposed" in name)
    assert layers.is_depthwise(layer) == (name == "depthwise")
    assert layers.side_channels(layer, "conv", "in", -1) == 4


@pytest.mark.parametrize("name", KINDS)
def test_places_hold_every_value_of_a_channel_in_order(name: str) -> None:
    layer, shape = KINDS[name]
    x = torch.randn(2, *shape)
    places = layers.by_place(layer, x)
    channel = x.select(layers.channel_dim(layer), 1)
    assert torch.equal(places[:, 1], channel.reshape(2, -1)) and places.shape[1] == 4
    means = layers.mean_over_places(layer, x)
    torch.testing.assert_close(means[:, 1], channel.reshape(2, -1).mean(1))


def test_rows_beside_a_weight_are_those_with_a_row_for_every_output() -> None:
    layer = nn.Linear(3, 5)
    layer.register_parameter("gain", nn.Parameter(torch.ones(5, 1)))
    layer.register_parameter("table", nn.Parameter(torch.ones(3, 5)))
    layer.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    assert list(layers.rows_beside(layer)) == ["gain"]
    assert layers.rows_beside(nn.LayerNorm(3)) == {}


@pytest.mark.parametrize(
    ("norm", "width"),
    [(nn.BatchNorm2d(6), 6), (nn.GroupNorm(2, 6), 6), (nn.PReLU(3), 3), (nn.LayerNorm((4, 7)), 7)],
)
def test_the_width_of_a_norm(norm: nn.Module, width: int) -> None:
    assert layers.norm_width(norm) == layers.side_channels(norm, "norm", "both", -1) == width
