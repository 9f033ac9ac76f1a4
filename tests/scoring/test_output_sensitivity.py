"""The sensitivity is the squared derivative, whatever the network does with the layer's output."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mint_compress.estimators.regression import regression
from mint_compress.graph.finding import find_groups
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.output_sensitivity import output_sensitivity
from mint_compress.scoring.scores import score


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def two_layers(activation: nn.Module, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, outputs))


def test_of_a_linear_map_it_is_the_square_of_the_weights() -> None:
    model = two_layers(nn.Identity())
    found = output_sensitivity(model, {"0": model[0], "2": model[2]}, [inputs(20, 3)])
    weight = model[2].weight.detach().double()[0]
    torch.testing.assert_close(found["0"], weight.square(), rtol=1e-6, atol=0)
    assert found["2"].tolist() == [1.0]


def test_random_signs_add_up_the_squares_of_several_outputs() -> None:
    model = two_layers(nn.Identity(), outputs=3)
    found = output_sensitivity(model, {"0": model[0]}, [inputs(64, 3)] * 40)["0"]
    exact = model[2].weight.detach().double().square().sum(0)
    torch.testing.assert_close(found, exact, rtol=0.5, atol=0.05)


def test_places_are_averaged_and_images_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 1))
    x = inputs(9, 2, 6, 6)
    found = output_sensitivity(model, {"0": model[0]}, [x[:4], x[4:]])["0"]
    active = model[0](x) > 0
    slope = model[3].weight.detach().reshape(3, 4, 4) * active
    torch.testing.assert_close(found, slope.double().square().mean((0, 2, 3)), rtol=1e-5, atol=1e-9)


def test_an_activation_that_works_in_place_makes_no_difference() -> None:
    layers = [two_layers(nn.ReLU(inplace=inplace)) for inplace in (False, True)]
    one, two = (output_sensitivity(m, {"0": m[0]}, [inputs(20, 3)])["0"] for m in layers)
    assert torch.equal(one, two) and bool(one.any())


def test_frozen_networks_count_as_well_and_stay_frozen() -> None:
    model = two_layers(nn.ReLU())
    free = output_sensitivity(model, {"0": model[0]}, [inputs(20, 3)])["0"]
    model.requires_grad_(False).train()
    with torch.no_grad():
        frozen = output_sensitivity(model, {"0": model[0]}, [inputs(20, 3)])["0"]
    assert torch.equal(free, frozen)
    assert model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).detach().relu())


class WithoutGradients(Detached):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(("kind", "known"), [(Detached, ["head"]), (WithoutGradients, [])])
def test_where_no_derivative_reaches_nothing_is_said(kind: Callable[[], Detached], known: list[str]) -> None:
    model = kind()
    assert list(output_sensitivity(model, dict(model.named_children()), [inputs(8, 3)])) == known
    # Torch-Pruning, which follows derivatives, finds nothing; following the channels does
    assert [g.name for g in find_groups(model, inputs(8, 3)[:1]) if g.prunable] == ["body"]


class Forwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.sin()


class WithoutBackward(Detached):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(Forwards.apply(self.body(x)))


def test_an_operation_without_a_derivative_is_said_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    model = WithoutBackward()
    assert output_sensitivity(model, dict(model.named_children()), [inputs(8, 3)]) == {}
    assert "backward pass fails" in caplog.text
    assert not model.body._forward_hooks and all(p.requires_grad for p in model.parameters())


def test_a_channel_that_only_an_ignored_output_reads_goes_first() -> None:
    """The second output of the layer that reads it is large, and the network does not look at it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 1, 1, 0, 1, 1], [0, 0, 0, 9.0, 0, 0]]))
        model[3].weight.copy_(torch.tensor([[1.0, 0.0]]))
    x = inputs(256, 4)
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x])
    assert calibration.sensitivity["2"].tolist() == [1.0, 0.0]
    assert int(score(groups, calibration).nats["0"].argmin()) == 3


def test_equal_costs_are_the_noise_there_was_without_them() -> None:
    torch.manual_seed(0)
    rows = torch.randn(100, 5, dtype=torch.float64)
    covariance, weight = rows.T @ rows / 100, torch.randn(5, 3, dtype=torch.float64)
    variance = ((covariance @ weight) * weight).sum(0)
    owner = torch.arange(5)
    plain, same, other = (
        regression(covariance, weight, owner, 5, noise=2.0, ridge=1e-9, importance=counts).noise
        for counts in (None, 7 / variance, torch.tensor([1.0, 2.0, 4.0]).double())
    )
    torch.testing.assert_close(same, plain)
    torch.testing.assert_close(other * torch.tensor([1.0, 2.0, 4.0]), other[:1].expand(3))


@pytest.mark.parametrize("batch", [8, 64, 300])
def test_so_many_images_are_looked_at_however_they_come(batch: int) -> None:
    model = two_layers(nn.ReLU())
    x = inputs(300, 3)
    found = output_sensitivity(model, {"0": model[0]}, list(x.split(batch)))["0"]
    active = model[0](x[:64]) > 0
    slope = model[2].weight.detach().double().square() * active
    torch.testing.assert_close(found, slope.mean(0), rtol=1e-5, atol=1e-12)


def test_all_calls_of_a_layer_count() -> None:
    torch.manual_seed(0)
    shared, one, two = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.one, self.two = shared, one, two

        def forward(self, x: Tensor) -> Tensor:
            return 10 * self.one(self.shared(x)) + self.two(self.shared(x + 1))  # type: ignore[no-any-return]

    found = output_sensitivity(Twice(), {"shared": shared}, [inputs(20, 3)])["shared"]
    exact = 100 * one.weight.detach().double().square() + two.weight.detach().double().square()
    torch.testing.assert_close(found, exact[0], rtol=1e-5, atol=0)


class Remembers(nn.Module):
    """Keeps what it has computed on itself, as some networks keep biases of their attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["hidden"] = self.layer(x)
        out: Tensor = self.head(self.kept["hidden"])
        return out


def test_nothing_with_a_history_is_left_on_the_network() -> None:
    model = Remembers().eval()
    assert output_sensitivity(model, {"layer": model.layer}, [inputs(8, 3)])["layer"].shape == (4,)
    assert model.kept == {} and len(list(copy.deepcopy(model).parameters())) == 4
