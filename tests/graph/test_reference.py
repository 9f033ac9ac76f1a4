"""The reference copy: what varies in it, on which inputs it is run, and whose faults come out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mint_compress.errors import ForeignError
from mint_compress.graph.finding import find_groups
from mint_compress.graph.reference import TOLERANCE, change, reference_copy, reference_run


class Fails(nn.Module):
    """Convolutions and BatchNorm on the way of evaluation; in training, and below a size, it fails."""

    def __init__(self, least: int = 1, *, in_training: bool = False) -> None:
        super().__init__()
        self.least, self.in_training = least, in_training
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.fc, self.auxiliary = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < self.least:
            raise LookupError("too small\nby far")
        if self.training and self.in_training:
            raise LookupError("not made for training")
        result: Tensor = self.fc(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))
        return result


@pytest.mark.parametrize(("least", "side"), [(1, 64), (64, 64), (65, 96), (97, 100)])
def test_the_smallest_image_that_the_network_takes(least: int, side: int) -> None:
    copy, inputs = reference_copy(Fails(least), (torch.zeros(2, 3, 100, 100),))
    reference = reference_run(copy, inputs)
    assert reference.inputs[0].shape == ((1, 3, side, side) if side < 100 else (2, 3, 100, 100))
    assert reference.inputs[0].dtype == torch.float64 and bool(reference.inputs[0].std() > 0.9)
    assert change(reference.outputs, reference.run()) == 0


def test_a_network_that_takes_no_image_says_so_as_its_own_fault() -> None:
    copy, inputs = reference_copy(Fails(1000), (torch.zeros(2, 3, 100, 100),))
    with pytest.raises(
        ForeignError, match=r"^The network's forward pass failed: LookupError: too small$"
    ) as e:
        reference_run(copy, inputs)
    assert isinstance(e.value.__cause__, LookupError)


def test_a_way_of_training_that_fails_leaves_the_outputs_of_the_reference_right() -> None:
    """The image that evaluation takes is smaller than the one on which training was tried."""
    groups = find_groups(Fails(in_training=True).eval(), torch.zeros(1, 3, 100, 100))
    assert {g.name: g.reason for g in groups if g.name != "fc"} == {
        "one": None,
        "two": None,
        "auxiliary": "not traced: the forward pass does not reach it",
    }


def test_statistics_are_those_of_the_inputs_and_stay_in_training() -> None:
    copy, inputs = reference_copy(Fails(), (torch.randn(4, 3, 9, 9),))
    reference = reference_run(copy, inputs)
    (norm,) = [m for m in copy.modules() if isinstance(m, nn.BatchNorm2d)]
    seen = copy.get_submodule("one")(inputs[0])
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    reference_run(copy, (10 * inputs[0],), in_training=True)
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    assert change(reference.outputs, reference.run()) == 0


def test_one_value_per_channel_keeps_the_statistics_and_other_faults_come_out() -> None:
    one = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    copy, inputs = reference_copy(one, (torch.randn(1, 3),))
    reference_run(copy, inputs)
    assert isinstance(copy[1], nn.BatchNorm1d) and not copy[1].training  # type: ignore[index]
    assert copy[1].running_mean.tolist() == [0, 0, 0, 0]  # type: ignore[index, union-attr, operator]

    class OnlyEvaluates(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("not made for training")
            return super().forward(x)

    one[1] = OnlyEvaluates(4)
    copy, inputs = reference_copy(one, (torch.randn(5, 3),))
    with pytest.raises(ForeignError, match="ValueError: not made for training"):
        reference_run(copy, inputs)
    assert not copy[1].training  # type: ignore[index]


class WithConstants(nn.Module):
    """Parameters as they are before training."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold, self.alpha = nn.Parameter(torch.tensor([-0.3])), nn.Parameter(torch.zeros(()))
        self.gain, self.scale = nn.Parameter(torch.ones(9)), nn.Parameter(torch.full((9, 1), 1e-6))
        self.offsets, self.trained = nn.Parameter(torch.full((9,), -5.0)), nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_constant_parameters_vary_around_their_value() -> None:
    before = WithConstants()
    copy, _ = reference_copy(before, (torch.zeros(1),))
    after = dict(copy.named_parameters())
    assert torch.equal(after["threshold"], before.threshold.double())  # there is nothing to tell apart
    assert torch.equal(after["trained"], before.trained.double())
    for name, size in {"alpha": 0.01, "gain": 1, "scale": 0.01, "offsets": -5}.items():
        ratios = (after[name] / size).detach()
        assert ratios.min() >= 0.8 and ratios.max() <= 1.2, name
        assert len(ratios.unique()) == ratios.numel(), name


class Shrinking(nn.Module):
    """Soft thresholding with a parameter, as unrolled sparse coding has it (Gregor and LeCun, 2010)."""

    def __init__(self, threshold: Tensor | float) -> None:
        super().__init__()
        self.i, self.a = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.b, self.o = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)
        self.t = nn.Parameter(threshold) if isinstance(threshold, Tensor) else threshold

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x).relu()
        y = self.b(self.a(x).relu())
        result: Tensor = self.o((x + y.sign() * (y.abs() - self.t).relu()).mean((2, 3)))
        return result


@pytest.mark.parametrize(
    "threshold",
    [0.001, torch.tensor([0.001]), torch.tensor(0.0), torch.full((16, 1, 1), 0.001)],
    ids=["number", "parameter", "zero", "of each channel"],
)
def test_what_lies_before_a_threshold_is_seen(threshold: Tensor | float) -> None:
    torch.manual_seed(0)
    groups = find_groups(Shrinking(threshold).eval(), torch.randn(2, 3, 16, 16))
    assert [g.reason for g in groups if "o" not in g.producers] == [None, None]


def test_the_change_is_relative_to_the_largest_value_of_each_output() -> None:
    one, many = torch.tensor([1.0, -4.0]), torch.tensor([[1e6, 0.0]])
    assert change([one, many], [one + torch.tensor([1.0, 0.0]), many]) == 0.25
    assert change([one, many], [one, many + 1e-4]) < TOLERANCE
    for other in ([one], [one, many[0]], [one * float("nan"), many]):
        assert change([one, many], other) == float("inf")
