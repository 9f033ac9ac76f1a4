"""What is left of a layer is what indexing leaves, in its order, whichever channels go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mint_compress.surgery.slicing import cut_

WIDTH = 160
"""Wide enough: CPython lists the set of range(160) without 0 to 95 from 128 on."""
AFFINE = {"weight": 0, "bias": 0}
STATISTICS = {**AFFINE, "running_mean": 0, "running_var": 0}


class Side(NamedTuple):
    """A layer, which side of it is cut, and along which dimension that cuts which of its tensors."""

    make: Callable[[], nn.Module]
    kind: str
    side: str
    cut: dict[str, int]


SIDES = {
    "linear out": Side(lambda: nn.Linear(3, WIDTH), "linear", "out", AFFINE),
    "linear in": Side(lambda: nn.Linear(WIDTH, 3), "linear", "in", {"weight": 1}),
    "conv out": Side(lambda: nn.Conv2d(3, WIDTH, 3), "conv", "out", AFFINE),
    "conv in": Side(lambda: nn.Conv2d(WIDTH, 3, 3), "conv", "in", {"weight": 1}),
    "transposed out": Side(lambda: nn.ConvTranspose2d(3, WIDTH, 3), "conv", "out", {"weight": 1, "bias": 0}),
    "transposed in": Side(lambda: nn.ConvTranspose2d(WIDTH, 3, 3), "conv", "in", {"weight": 0}),
    "depthwise": Side(lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH), "depthwise", "both", AFFINE),
    "batch": Side(lambda: nn.BatchNorm2d(WIDTH), "norm", "both", STATISTICS),
    "frozen": Side(lambda: FrozenBatchNorm2d(WIDTH), "norm", "both", STATISTICS),
    "instance": Side(lambda: nn.InstanceNorm2d(WIDTH, affine=True), "norm", "both", AFFINE),
    "group": Side(lambda: nn.GroupNorm(1, WIDTH), "norm", "both", AFFINE),
    "layer": Side(lambda: nn.LayerNorm(WIDTH), "norm", "both", AFFINE),
    "layer, no bias": Side(lambda: nn.LayerNorm(WIDTH, bias=False), "norm", "both", {"weight": 0}),
    "layer, bare": Side(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), "norm", "both", {}),
    "RMS": Side(lambda: nn.RMSNorm(WIDTH), "norm", "both", {"weight": 0}),
    "PReLU": Side(lambda: nn.PReLU(WIDTH), "norm", "both", {"weight": 0}),
    "embedding": Side(lambda: nn.Embedding(5, WIDTH), "embedding", "out", {"weight": 1}),
    "LSTM": Side(lambda: nn.LSTM(WIDTH, 4), "recurrent", "in", {"weight_ih_l0": 1}),
}


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("gone", [range(96), range(64, 160), range(1, 160, 2)], ids=["first", "last", "odd"])
def test_what_stays_keeps_its_order(name: str, gone: Sequence[int]) -> None:
    make, kind, side, cut = SIDES[name]
    model = nn.ModuleDict({"layer": make()})
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    before = {n: t.clone() for n, t in model["layer"].state_dict().items()}
    assert cut.keys() <= before.keys()
    kept = torch.tensor([i for i in range(WIDTH) if i not in gone])
    cut_(model, "layer", kind, side, 0, list(gone))
    after = model["layer"].state_dict()
    assert after.keys() == before.keys()
    for tensor, values in before.items():
        wanted = values.index_select(cut[tensor], kept) if tensor in cut else values
        assert torch.equal(after[tensor], wanted), tensor
