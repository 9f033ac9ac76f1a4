"""Rows times the matrix are what a layer gives, transposed convolutions among them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mint_compress as mc
from mint_compress.nn.linear_maps import linear_map
from mint_compress.planning.choices import make_plan

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "blocks side by side": (lambda: nn.ConvTranspose2d(5, 3, 2, 2), (5, 4, 6)),
    "overlapping": (lambda: nn.ConvTranspose2d(5, 3, 4, 2, 1), (5, 4, 6)),
    "padded unevenly": (lambda: nn.ConvTranspose2d(4, 3, (6, 4), (3, 2), (1, 2), (1, 0)), (4, 5, 4)),
    "not spread at all": (lambda: nn.ConvTranspose2d(4, 3, 3, 1, 1, bias=False), (4, 5, 5)),
    "1d": (lambda: nn.ConvTranspose1d(4, 3, 8, 4, 2), (4, 7)),
    "3d": (lambda: nn.ConvTranspose3d(3, 2, 2, 2), (3, 2, 3, 4)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 7, 7)),
    "linear": (lambda: nn.Linear(4, 3), (6, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_matrix_are_the_outputs_at_their_places(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    y, linear = layer(x).detach(), linear_map(layer)
    assert linear.is_exact(x, y)
    places = torch.arange(linear.places(y))
    found = linear.rows(x, y, places) @ linear.matrix()
    wanted = linear.outputs(y, places)
    if layer.bias is not None:
        each = wanted.shape[2] * wanted.shape[0] // len(layer.bias)
        found = found + layer.bias.repeat_interleave(each).reshape(wanted.shape[0], 1, -1)
    torch.testing.assert_close(found, wanted)
    some = places[1::3]
    rows = wanted.reshape(wanted.shape[0], 3, len(places), -1)[:, :, some]
    torch.testing.assert_close(linear.outputs(y, some), rows.flatten(1, 2))

    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
    linear_map(other).write_(linear.matrix())
    assert torch.equal(other.weight, layer.weight)


def test_every_pixel_of_the_inside_is_in_one_block() -> None:
    layer = nn.ConvTranspose2d(2, 1, 4, 2, 1)
    y = torch.arange(64.0).reshape(1, 1, 8, 8)
    blocks = linear_map(layer).outputs(y, torch.arange(linear_map(layer).places(y)))
    # with a padding of one, blocks begin at the second pixel
    assert sorted(blocks.flatten().tolist()) == sorted(y[0, 0, 1:7, 1:7].flatten().tolist())
    assert blocks[0, 0].tolist() == [9.0, 10.0, 17.0, 18.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1),
        lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        lambda: nn.ConvTranspose2d(4, 3, 2, 2, dilation=2),
    ],
)
def test_what_is_made_of_no_blocks_is_no_such_map(make: Any) -> None:
    layer, x = make(), torch.randn(2, 4, 5, 5)
    assert not linear_map(layer).is_exact(x, layer(x).detach())


def test_an_output_without_a_whole_block_shows_no_such_map() -> None:
    layer, x = nn.ConvTranspose2d(4, 3, 4, 2, 1), torch.randn(2, 4, 1, 1)
    assert linear_map(layer).places(layer(x)) == 0
    assert not linear_map(layer).is_exact(x, layer(x).detach())


class Up(nn.Module):
    """Widens, and enlarges what it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 4, 4, 2, 1)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.up(self.first(x)).relu())
        return result


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    return float((one(images) - other(images)).square().mean())


def test_a_transposed_layer_makes_up_for_channels_that_follow_from_others() -> None:
    torch.manual_seed(0)
    model = Up().eval()
    with torch.no_grad():  # half of the channels are a mixture of the others
        model.first.weight[8:] = torch.einsum("ij,jklm->iklm", torch.randn(8, 8), model.first.weight[:8])
        model.first.bias.zero_()  # type: ignore[union-attr]
    images = torch.randn(64, 3, 8, 8)
    groups = mc.find_groups(model, images[:1])
    plan = make_plan(groups, {"first": torch.arange(16).numpy() >= 8}, asked=None)
    small = mc.prune_(copy.deepcopy(model), plan)
    before = difference(small, model, images)
    repairs = mc.compensate_(small, model, plan, images.split(32), seed=0)
    after = difference(small, model, images)
    up = next(r for r in repairs if r.layer == "up")
    assert up.before > 0.1 and up.after < 1e-4
    assert after < 1e-6 * before
