"""What calibration keeps equals what numpy finds on all the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import Chain, build, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.errors import MintError
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import consumer_units, unit_offsets
from mint_compress.nn.im2col import input_rows, output_positions, output_rows
from mint_compress.nn.moments import MomentSum, rows_wanted
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.wide_layers import contribution_rows, contribution_units


def recorded(model: nn.Module, names: list[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda layer, inputs, output: seen.update({name: (inputs[0], output)})

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["chain", "grouped", "flatten", "norm_mlp", "one_dimensional", "concat"])
def test_covariance_equals_numpy_when_nothing_is_sampled(name: str) -> None:
    model, x = build(name).double(), images(name, 12).double()  # multiplied in their own precision
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x[:5], x[5:7], (x[7:], None)])
    assert calibration.images == 12
    layers = list(consumer_units(groups))
    assert sorted(calibration.moments) == sorted(layers)
    for layer, (given, output) in recorded(model, layers, x).items():
        module, moments = model.get_submodule(layer), calibration.moments[layer]
        count = output_positions(module, output)
        assert count <= rows_wanted(1, 12)
        rows = input_rows(module, given, output, torch.arange(count)).double().numpy()
        assert moments.form == "patches" and moments.rows == rows.shape[1]
        for group, own in enumerate(rows):
            np.testing.assert_allclose(moments.mean[group], own.mean(0), atol=1e-10)
            np.testing.assert_allclose(moments.covariance[group], np.cov(own.T, bias=True), atol=1e-10)


def test_products_of_single_precision_are_right_to_six_digits() -> None:
    rows = torch.randn(2, 5000, 9, generator=torch.Generator().manual_seed(0)) + 100
    single, double = MomentSum(), MomentSum()
    for part in rows.split(700, dim=1):
        single.add(part, part[:, :, :2].square())
        double.add(part.double(), part[:, :, :2].double().square())
    for name, exact in vars(double.result()).items():
        torch.testing.assert_close(getattr(single.result(), name), exact, rtol=1e-5, atol=1e-5)


def test_column_units_follow_the_channels() -> None:
    model, x = build("concat"), images("concat")
    groups = find_groups(model, x)
    offsets, moments = unit_offsets(groups), calibrate(model, groups, [x]).moments["join"]
    left = [offsets["left"] + i for i in range(4)]
    right = [offsets["right"] + i for i in range(3)]
    assert moments.column_units.tolist() == [[u for u in left + right for _ in range(9)]]


def test_a_transposed_convolution_is_described_by_its_pixels() -> None:
    model, x = build("transposed").double(), images("transposed", 6).double()
    groups = find_groups(model, x[:1])
    moments = calibrate(model, groups, [x]).moments["up"]
    given = recorded(model, ["up"], x)["up"][0]
    rows = given.flatten(2).permute(0, 2, 1).reshape(-1, 4).double().numpy()
    assert moments.form == "pixels" and moments.weight.shape == (1, 4, 6 * 2 * 2)
    np.testing.assert_allclose(moments.covariance[0], np.cov(rows.T, bias=True), atol=1e-10)


def test_moments_do_not_cancel_far_from_zero() -> None:
    rows = torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = MomentSum()
    for part in (rows + 1e7).split(100, dim=1):
        total.add(part)
    seen = total.result()
    np.testing.assert_allclose(seen.covariance[0], np.cov(rows[0].T, bias=True), atol=1e-7)
    np.testing.assert_allclose(seen.mean[0], 1e7 + rows[0].mean(0), atol=1e-6)


def test_contributions_sum_to_the_output() -> None:
    layer = nn.Conv2d(4, 3, 3, padding=1)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = layer(x)
    positions = torch.arange(25)
    units = torch.tensor([5, -1, 2, 5])
    assert contribution_units(units).tolist() == [2, 5, -1]
    rows = input_rows(layer, x, output, positions)
    shares = contribution_rows(layer, rows, units)
    assert layer.bias is not None
    whole = (output_rows(layer, output, positions)[0] - layer.bias).reshape(-1)
    torch.testing.assert_close(shares[0].sum(1), whole, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        only = x.clone()
        only[:, [1, 2]] = 0
        second = output_rows(layer, layer(only) - layer.bias[:, None, None], positions)[0].reshape(-1)
    torch.testing.assert_close(shares[0, :, 1], second, atol=1e-5, rtol=1e-5)


def test_a_wide_layer_is_described_by_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_compress.scoring.moment_forms.MAX_COLUMNS", 20)
    model, x = build("flatten").double(), images("flatten", 9).double()
    groups = find_groups(model, x[:1])
    moments = calibrate(model, groups, [x]).moments["fc1"]
    given, output = recorded(model, ["fc1"], x)["fc1"]
    layer = model.get_submodule("fc1")
    units = consumer_units(groups)["fc1"]
    rows = contribution_rows(layer, input_rows(layer, given, output, torch.tensor([0])), units)[0]
    assert moments.form == "contributions" and moments.covariance.shape == (1, 4, 4)
    assert moments.column_units.tolist() == [sorted(set(units.tolist()))]
    # each output has a mean of its own, which a bias takes up
    of_output = rows.reshape(len(x), -1, 4).double().numpy().transpose(1, 2, 0)
    within = np.mean([np.cov(o, bias=True) for o in of_output], 0)
    np.testing.assert_allclose(moments.covariance[0], within, atol=1e-9)
    split = calibrate(model, groups, [x[:2], x[2:7], x[7:]]).moments["fc1"]
    np.testing.assert_allclose(split.covariance[0], within, atol=1e-9)
    assert torch.equal(moments.weight, torch.ones(1, 4, 1, dtype=moments.weight.dtype))


class Scaled(nn.Linear):
    """Not what its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


class Tokens(nn.Module):
    """An MLP on tokens, in windows of four of an image each."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 8), Scaled(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 2, 6)
        windows = windows + self.down(F.relu(self.up(windows)))
        return self.head(windows.reshape(x.shape).mean(1))  # type: ignore[no-any-return]


def test_tokens_of_an_unusual_linear_layer_are_rows() -> None:
    torch.manual_seed(0)
    model, x = Tokens().double().eval(), torch.randn(10, 8, 6).double()
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x], samples=True)
    given, output = recorded(model, ["down"], x)["down"]
    assert calibration.moments["down"].form == "pixels"
    rows = given.reshape(-1, 8).double().numpy()
    np.testing.assert_allclose(
        calibration.moments["down"].covariance[0], np.cov(rows.T, bias=True), atol=1e-9
    )
    inputs, outputs = calibration.samples["down"]  # one row an image, whatever the windows
    torch.testing.assert_close(inputs, given.reshape(10, 8, 8).mean(1))
    torch.testing.assert_close(outputs, output.reshape(10, 8, 6).mean(1))


def test_samples_are_paired_spatial_means() -> None:
    model, x = build("chain"), images("chain", 7)
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x[:4], x[4:]], moments=False, samples=True)
    given, output = recorded(model, ["conv2"], x)["conv2"]
    inputs, outputs = calibration.samples["conv2"]
    torch.testing.assert_close(inputs, given.mean((2, 3)))
    torch.testing.assert_close(outputs, output.mean((2, 3)))
    assert calibration.moments == {} and sorted(calibration.samples) == ["conv2", "fc"]


def test_the_model_is_left_as_it_was() -> None:
    model, x = build("chain"), images("chain")
    groups = find_groups(model, x)
    model.train()
    model.get_submodule("bn1").eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    calibrate(model, groups, [x])
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(MintError, match="The network's forward pass failed: RuntimeError"):
        calibrate(model, groups, [torch.zeros(1, 4, 6, 6)])
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_pixels_are_drawn_by_the_seed_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_compress.nn.moments.LEAST_ROWS", 30)
    monkeypatch.setattr("mint_compress.nn.moments.ROWS_PER_COLUMN", 1)
    model, x = build("chain"), images("chain", 6)
    groups = find_groups(model, x[:1])
    one, same, other = (calibrate(model, groups, [x], seed=s).moments["conv2"] for s in (1, 1, 2))
    assert one.rows == 6 * -(-54 // 6)
    assert torch.equal(one.covariance, same.covariance)
    assert not torch.equal(one.covariance, other.covariance)


def test_no_images_and_values_that_are_not_finite() -> None:
    model, x = build("chain"), images("chain")
    groups = find_groups(model, x)
    with pytest.raises(MintError, match="at least one batch"):
        calibrate(model, groups, [])
    with pytest.raises(MintError, match="gives values that are not finite"):
        calibrate(model, groups, [x * float("nan")])


def test_only_what_can_be_pruned_is_watched() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Chain().eval()
    x = images("chain")
    calibration = calibrate(model, find_groups(model, x, ignore=["conv2"]), [x])
    assert list(calibration.moments) == ["conv2"]
