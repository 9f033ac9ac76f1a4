"""A layer is the matrix that im2col.py says it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mint_compress.nn import im2col, layers

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "stride": (nn.Conv2d(3, 5, 3, stride=2), (3, 8, 9)),
    "padding": (nn.Conv2d(3, 5, 3, padding=(1, 2)), (3, 6, 7)),
    "dilation": (nn.Conv2d(3, 5, 3, dilation=(2, 1), padding=2), (3, 7, 7)),
    "groups": (nn.Conv2d(6, 4, 3, groups=2, stride=(2, 1), bias=False), (6, 7, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    "same": (nn.Conv2d(3, 5, (3, 4), padding="same", dilation=(1, 2)), (3, 8, 9)),
    "valid": (nn.Conv2d(3, 5, 3, padding="valid"), (3, 5, 5)),
    "reflect": (nn.Conv2d(3, 5, 5, padding=2, padding_mode="reflect"), (3, 6, 6)),
    "circular": (nn.Conv2d(3, 5, 3, padding=(1, 2), padding_mode="circular", stride=2), (3, 6, 6)),
    "1d": (nn.Conv1d(3, 5, 4, stride=3, padding=2), (3, 13)),
    "3d": (nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "linear": (nn.Linear(6, 4), (6,)),
    "tokens": (nn.Linear(6, 4, bias=False), (5, 6)),
    "grid of tokens": (nn.Linear(6, 4), (3, 2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_is_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = layer(x)
        positions = torch.arange(im2col.output_positions(layer, output))
        rows = im2col.input_rows(layer, x, output, positions).double()
        given = rows @ im2col.weight_matrix(layer)
        if layer.bias is not None:
            given = given + layer.bias.double().reshape(given.shape[0], 1, -1)  # type: ignore[operator, union-attr]
    wanted = im2col.output_rows(layer, output, positions)
    columns = layers.in_channels(layer) * layers.taps(layer) // layers.channel_groups(layer)
    assert rows.shape == (layers.channel_groups(layer), 3 * len(positions), columns)
    torch.testing.assert_close(given, wanted.double(), atol=1e-5, rtol=1e-5)
    assert im2col.is_plain(layer, x, output)


@pytest.mark.parametrize("name", LAYERS)
def test_chosen_positions_are_rows_of_all(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    output = layer(x)
    count = im2col.output_positions(layer, output)
    some = im2col.sample_positions(count, 3, torch.Generator().manual_seed(4))
    whole = im2col.input_rows(layer, x, output, torch.arange(count)).unflatten(1, (2, count))
    part = im2col.input_rows(layer, x, output, some).unflatten(1, (2, len(some)))
    torch.testing.assert_close(part, whole[:, :, some], atol=0, rtol=0)


@pytest.mark.parametrize("name", [name for name, (_, shape) in LAYERS.items() if len(shape) == 3])
def test_rows_are_the_same_with_channels_last(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    output = layer(x)
    some = im2col.sample_positions(
        im2col.output_positions(layer, output), 5, torch.Generator().manual_seed(4)
    )
    rows = im2col.input_rows(layer, x, output, some)
    last = im2col.input_rows(layer, x.to(memory_format=torch.channels_last), output, some)
    assert torch.equal(rows, last)


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_can_be_written_back(name: str) -> None:
    layer, _ = LAYERS[name]
    before = layer.weight.detach().clone()  # type: ignore[operator, union-attr]
    matrix = im2col.weight_matrix(layer)
    im2col.set_weight_matrix(layer, matrix * 2)
    torch.testing.assert_close(layer.weight, nn.Parameter(before * 2))
    im2col.set_weight_matrix(layer, matrix)
    torch.testing.assert_close(layer.weight, nn.Parameter(before), atol=0, rtol=0)


def test_columns_are_ordered_by_channel() -> None:
    layer = nn.Conv2d(2, 1, 2, bias=False)
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    rows = im2col.input_rows(layer, x, layer(x), torch.tensor([0, 3]))
    assert rows.tolist() == [[[0, 1, 3, 4, 9, 10, 12, 13], [4, 5, 7, 8, 13, 14, 16, 17]]]


def test_positions_are_drawn_without_repetition() -> None:
    drawn = im2col.sample_positions(50, 20, torch.Generator().manual_seed(0))
    assert drawn.tolist() == sorted(set(drawn.tolist())) and len(drawn) == 20
    assert im2col.sample_positions(5, 20, torch.Generator()).tolist() == [0, 1, 2, 3, 4]


class PadsItself(nn.Conv2d):
    """As timm's Conv2dSame: padding happens in forward, unseen from the attributes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize("layer", [PadsItself(3, 4, 3), Standardised(3, 4, 3), nn.ConvTranspose2d(3, 4, 2)])
def test_a_layer_with_ways_of_its_own_is_not_plain(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert not im2col.is_plain(layer, x, layer(x))
