"""Recurrent layers read by a linear map, which can be cut, watched and refitted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import build, images
from torch import Tensor, nn

import mint_compress as mc
from mint_compress.nn.recurrent import input_projection, macs_of_call, read_and_made, set_input_projection_
from mint_compress.planning.choices import make_plan
from mint_compress.repair.compensation import compensate_
from mint_compress.surgery.pruning import prune_

KINDS: dict[str, Any] = {
    "gru": lambda: nn.GRU(5, 3),
    "two ways": lambda: nn.LSTM(5, 3, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(5, 4, proj_size=2, batch_first=True),
    "without bias": lambda: nn.RNN(5, 3, bias=False),
    "cell": lambda: nn.GRUCell(5, 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_projection_can_change_places(kind: str) -> None:
    """Of inputs that are a mixture Q z, the layer makes what one with the weights W Q makes of z."""
    torch.manual_seed(0)
    layer, other = KINDS[kind]().double(), KINDS[kind]().double()
    other.load_state_dict(layer.state_dict())
    mixing = torch.randn(5, 5, dtype=torch.float64)
    projection = input_projection(layer)
    with torch.no_grad():
        projection.weight.copy_(projection.weight @ mixing)
    set_input_projection_(other, projection)
    z = torch.randn((6, 5) if kind == "cell" else (6, 4, 5), dtype=torch.float64)
    wanted, found = layer(z @ mixing.T), other(z)
    one, same = (made if kind == "cell" else made[0] for made in (wanted, found))
    torch.testing.assert_close(one, same)


def test_what_it_reads_has_the_samples_first() -> None:
    layer, x = nn.GRU(5, 3, bidirectional=True), torch.randn(7, 2, 5)
    read, made = read_and_made(layer, x, layer(x))
    assert read.shape == (2, 7, 5) and made.shape == (2, 7, 2 * 3 * 3)
    by_hand = x[4, 1] @ layer.weight_ih_l0_reverse.T + layer.bias_ih_l0_reverse
    torch.testing.assert_close(made[1, 4, 9:], by_hand.detach())
    assert macs_of_call(layer, x) == 14 * 2 * (9 * 5 + 9 * 3)


class Tracked(nn.Module):
    """Its recurrent layer is given a state that channels make."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv1d(2, 6, 3), nn.Conv1d(2, 4, 3)
        self.steps, self.fc = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        read = self.conv(x).relu().transpose(1, 2)
        made, _ = self.steps(read, self.first(x).mean(2)[None])
        return self.fc(made.mean(1))  # type: ignore[no-any-return]


def test_states_stay() -> None:
    groups = {g.name: g for g in mc.find_groups(Tracked().eval(), torch.randn(2, 2, 8))}
    assert groups["conv"].prunable
    assert groups["first"].reason == "they are states of a recurrent layer (steps)"


class Packed(Tracked):
    def forward(self, x: Tensor) -> Tensor:
        read = self.conv(x).relu().transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(read, [6, 4], batch_first=True)
        _, last = self.steps(packed)
        return self.fc(last[0])  # type: ignore[no-any-return]


class Squared(nn.GRU):
    """What it reads it has squared, so that its weights are no linear map of what it is given."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        return super().forward(input.square(), hx)


@pytest.mark.parametrize(("kind", "repaired"), [(nn.GRU, True), (Squared, False)])
def test_a_layer_with_ways_of_its_own_is_pruned_and_left_as_it_is(kind: type[nn.GRU], repaired: bool) -> None:
    model, x = build("gru"), images("gru", 64)
    model.set_submodule("steps", kind(8, 4, batch_first=True))
    groups = mc.find_groups(model, x[:2])
    (group,) = [g for g in groups if g.name == "conv2"]
    plan = make_plan(groups, {"conv2": np.arange(group.width) < 4}, asked=None)
    pruned = prune_(copy.deepcopy(model), plan)
    before = pruned.get_submodule("steps").weight_ih_l0.clone()  # type: ignore[operator, union-attr]
    found = {r.layer for r in compensate_(pruned, model, plan, [x])}
    assert ("steps" in found) == repaired
    assert torch.equal(pruned.get_submodule("steps").weight_ih_l0, before) != repaired  # type: ignore[arg-type]


def test_packed_sequences_are_left_alone() -> None:
    groups = {g.name: g for g in mc.find_groups(Packed().eval(), torch.randn(2, 2, 8))}
    assert not groups["conv"].prunable


@pytest.mark.parametrize("estimator", ["gaussian", "mint"])
def test_a_network_goes_all_the_way_and_comes_back(tmp_path: Path, estimator: str) -> None:
    model, data = build("lstm"), images("lstm", 96)
    path = tmp_path / "small.onnx"
    small, report = mc.compress(
        model, torch.utils.data.DataLoader(data, batch_size=32), output=path, ratio=0.15, round_to=1,  # type: ignore[arg-type]
        input_shape=(2, 7), epochs=0, heal_epochs=0, estimator=estimator, device="cpu", bench_seconds=0.02,
    )  # fmt: skip
    steps = small.get_submodule("steps")
    assert isinstance(steps, nn.LSTM) and steps.input_size < 8
    assert steps.weight_ih_l0.shape == (16, steps.input_size) == steps.weight_ih_l0_reverse.shape
    assert report.macs is not None and report.macs.before == 252 + 1008 + 24 + 5376
    again = mc.load(path.with_suffix(".safetensors"), builder=lambda: build("lstm"))
    assert again.get_submodule("steps").input_size == steps.input_size
    with torch.no_grad():
        assert torch.equal(again.eval()(data[:2]), small.eval()(data[:2]))
