"""Devices and accuracy."""

# mypy: disable-error-code="arg-type,union-attr,index,operator,no-untyped-call"

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mint_compress.data.datasets import ArrayDataset
from mint_compress.errors import MintError, OwnFault
from mint_compress.graph.finding import find_groups
from mint_compress.nn import counting
from mint_compress.nn.contexts import placed, seeded
from mint_compress.nn.counting import layer_macs
from mint_compress.nn.devices import device_of, resolve_device
from mint_compress.nn.io import first_tensor
from mint_compress.nn.memory_format import take_channels_last
from mint_compress.scoring.calibration import calibrate
from mint_compress.training.evaluation import accuracy, chance_warning

# ---- devices


def test_devices_are_resolved_or_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "tpu", "meta", ""):
        with pytest.raises(MintError, match=r"Unknown device .*Choose from: auto, cpu, cuda"):
            resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_without_cuda_is_an_error() -> None:
    for name in ("cuda", "cuda:3"):
        with pytest.raises(MintError, match=f"{name}.* CUDA is missing .*Use cpu or auto"):
            resolve_device(name)


def test_placing_a_module_ends_where_it_began() -> None:
    model = nn.Linear(2, 2)
    with placed(model, torch.device("meta")):
        assert device_of(model) == torch.device("meta")
        model.weight = nn.Parameter(torch.zeros(2, 2))
        model.bias = nn.Parameter(torch.zeros(2))
    assert device_of(model) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_seeding_repeats_and_restores() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        assert torch.equal(first, torch.rand(4))
    assert torch.equal(before, torch.get_rng_state())


# ---- accuracy


class Echo(nn.Module):
    """Says that an image belongs to the class that its first value names; wraps the answer on request."""

    def __init__(self, wrap: str = "tensor") -> None:
        super().__init__()
        self.wrap = wrap
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> object:
        assert not torch.is_grad_enabled()
        logits = self.drop(nn.functional.one_hot(x.flatten(1)[:, 0].long(), 4).float())
        return {"tensor": logits, "dict": {"out": logits, "aux": -logits}, "tuple": (logits, -logits)}[
            self.wrap
        ]


@pytest.mark.parametrize("wrap", ["tensor", "dict", "tuple"])
def test_accuracy_is_the_exact_share_in_eval_mode(wrap: str) -> None:
    said = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    dataset = ArrayDataset(said.float().view(7, 1, 1, 1), torch.tensor([0, 1, 2, 3, 3, 3, 3]))
    model = Echo(wrap)
    model.drop.eval()
    calls: list[tuple[str, int, int]] = []
    share = accuracy(model, dataset, batch_size=3, progress=lambda *a: calls.append(a))
    assert share == 4 / 7
    assert calls == [("accuracy", 1, 3), ("accuracy", 2, 3), ("accuracy", 3, 3)]
    assert model.training
    assert not model.drop.training
    assert accuracy(model, DataLoader(dataset, batch_size=2)) == 4 / 7
    calls.clear()
    stream = (batch for batch in DataLoader(dataset, batch_size=4))
    assert accuracy(model, stream, progress=lambda *a: calls.append(a)) == 4 / 7
    assert calls == [("accuracy", 1, 0), ("accuracy", 2, 0)]  # a stream does not say how much there is


def test_accuracy_counts_pixels_of_label_maps() -> None:
    labels = torch.tensor([[[0, 1], [1, 1]]])
    logits = torch.tensor([[[[1.0, 0], [0, 1]], [[0, 1.0], [1, 0]]]])
    assert accuracy(nn.Identity(), TensorDataset(logits, labels)) == 0.75


def test_accuracy_refuses_what_cannot_be_measured() -> None:
    images = torch.zeros(3, 4)
    with pytest.raises(MintError, match="is empty"):
        accuracy(nn.Identity(), TensorDataset(images[:0], torch.zeros(0).long()))
    with pytest.raises(MintError, match="label 4, but the network has 4 outputs"):
        accuracy(nn.Identity(), TensorDataset(images, torch.tensor([1, 2, 4])))
    with pytest.raises(MintError, match=r"output \(3, 2, 2\) does not fit labels \(3,\)"):
        accuracy(nn.Unflatten(1, (2, 2)), TensorDataset(images, torch.tensor([1, 2, 0])))
    with pytest.raises(MintError, match="returns a list without a tensor"):
        first_tensor([1, 2])


class Picky(nn.Module):
    """A layer that is pruned, and a forward pass that fails on an image that is negative somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise LookupError("negative\nat a place")
        result: Tensor = self.two(self.one(x).relu())
        return result


FAILED = r"^The network's forward pass failed: LookupError: negative$"


def test_a_forward_pass_that_fails_at_a_batch_is_named_in_one_line() -> None:
    model, images = Picky().eval(), torch.rand(12, 4)
    images[9] = -1
    with pytest.raises(MintError, match=FAILED) as caught:
        accuracy(model, TensorDataset(images, torch.zeros(12).long()), batch_size=4)
    assert caught.value.exit_code == 2 and isinstance(caught.value.__cause__, LookupError)
    assert accuracy(model, TensorDataset(images[:8], torch.zeros(8).long()), batch_size=4) >= 0
    groups = find_groups(model, images[:1])
    calls: list[int] = []
    with pytest.raises(MintError, match=FAILED):
        calibrate(model, groups, list(images.split(4)), progress=lambda _, done, all_: calls.append(done))
    assert calls == [1, 2]  # batches that it got through
    with pytest.raises(MintError, match=FAILED):
        layer_macs(model, images)


def test_a_fault_of_our_own_in_a_hook_is_not_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(counting, "is_transposed", broken)
    with pytest.raises(OwnFault, match="KeyError: 'a fault of ours'"):
        layer_macs(Picky(), torch.rand(2, 4))


class Viewing(nn.Module):
    """Views a map in an order that channels-last memory forbids; or fails anyhow."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.conv, self.fails = nn.Conv2d(3, 4, 1), fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise LookupError("always")
        x = self.conv(x)
        return x.view(len(x), -1)


def test_channels_last_is_for_networks_that_run_with_it() -> None:
    images, cpu = torch.rand(2, 3, 4, 5), torch.device("cpu")
    takes = nn.Conv2d(3, 4, 1)
    assert take_channels_last([takes], images, cpu)
    for other in (Viewing(), Viewing(fails=True), nn.Flatten()):
        assert not take_channels_last([takes, other], images, cpu)


def test_chance_warning_speaks_only_near_chance() -> None:
    warning = chance_warning(0.12, 10)
    assert warning is not None
    assert "12.00 %" in warning
    assert "10.00 %" in warning
    assert chance_warning(0.2, 10) is None
    assert chance_warning(0.54, 2) is not None
    assert chance_warning(0.56, 2) is None
