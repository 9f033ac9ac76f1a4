"""A copy of a network: bare, in float32, and an error that helps where there can be none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import Chain
from test_compression import QUICK
from torch import nn
from toydata import arrays

from mint_compress import MintError, compress, find_groups
from mint_compress.nn.copying import bare_copy


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))]
)
def test_what_is_wrapped_around_a_network_comes_off(wrap: Any) -> None:
    model = small().train()
    made, notes = bare_copy(wrap(model))
    assert type(made) is nn.Sequential and not made.training and notes == ()
    assert made.state_dict().keys() == model.state_dict().keys()
    assert model.training and made[0].weight is not model[0].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_it_is_said(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    made, [note] = bare_copy(model)
    assert {p.dtype for p in made.parameters()} == {torch.float32} and made[1].num_batches_tracked == 0
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert note == f"{str(dtype).removeprefix('torch.')} weights converted to float32"


def test_a_module_in_half_precision_is_compressed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Chain(16, 16).half()
    whole, report = compress(copy.deepcopy(model).float(), arrays(), **QUICK)
    half, other = compress(model, arrays(), **QUICK)
    assert "float16 weights converted to float32" in other.notes
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))
    assert report.parameters == other.parameters


class Scaled(nn.Module):
    """Computes its weight where no hook tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.ones(4, 4))
        self.weight = 2 * self.weight_v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_what_cannot_be_copied_is_an_error_with_a_remedy() -> None:
    """A weight that is computed from others would become a constant."""
    for attempt in (lambda m: find_groups(m, torch.randn(1, 4)), lambda m: compress(m, arrays(), **QUICK)):
        with pytest.raises(MintError, match=r"^The network cannot be copied \(.*make it a parameter first"):
            attempt(Scaled())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchscript_is_refused() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(MintError, match=r"^TorchScript cannot be pruned\. Give the module"):
        find_groups(scripted, torch.randn(1, 4))
