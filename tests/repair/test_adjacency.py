"""What a trace tells, on networks whose answer is known from their source."""

from __future__ import annotations

import torch
from networks import build, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.repair.adjacency import Topology, trace
from mint_compress.repair.tensor_location import TensorLocation


def test_a_residual_stream() -> None:
    found = trace(build("residual"), images("residual", 1))
    assert found.calls == ("stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "fc")
    assert found.norms == {"a.conv1": "a.bn1", "b.conv1": "b.bn1"}
    # the stream is made by operations, so it is first seen where a block's first layer reads it
    assert found.shortcuts == {
        "a.conv2": TensorLocation("a.conv1", "input"),
        "b.conv2": TensorLocation("b.conv1", "input"),
    }
    assert found.simple == set(found.calls)


class Everything(nn.Module):
    """A shared weight, a scaled layer, one called twice, and an activation module that is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(4, 4), nn.ReLU()
        self.twice, self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.scaled = Scaled(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        early = self.act(self.stem(x))
        late = self.act(self.twice(self.twice(early)))
        late = late + self.norm(self.tied(late))  # the latest of the activation
        return self.other(late) + early + self.scaled(late) + early  # type: ignore[no-any-return]


class Scaled(nn.Linear):
    """Not what its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


def test_all_questions_at_once() -> None:
    torch.manual_seed(0)
    model = Everything()
    found = trace(model, torch.randn(2, 4))
    assert found == Topology(
        calls=("stem", "twice", "twice", "tied", "other", "scaled"),
        norms={"tied": "norm"},
        # `early` is no shortcut of `other`: what the activation shows by then is another tensor; and a sum
        # of a sum is nobody's branch
        shortcuts={"tied": TensorLocation("act", "output")},
        simple=frozenset({"stem", "twice"}),
    )
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_a_layer_whose_output_two_operations_read_has_no_norm_of_its_own() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) * y.sigmoid()  # type: ignore[no-any-return]

    assert trace(Both(), torch.randn(2, 3, 4, 4)).norms == {}
