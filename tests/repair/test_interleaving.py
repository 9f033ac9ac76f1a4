"""Passes that cannot take turns are found out, and a fault of ours is not taken for the network's."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, build, images
from torch import Tensor, nn

from mint_compress.errors import STRICT, ForeignError, OwnFault
from mint_compress.repair import synchronised_passes
from mint_compress.repair.interleaving import can_interleave


class Keeps(nn.Module):
    """A skip connection by way of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def leave(self, x: Tensor) -> None:
        self.skip = x

    def forward(self, x: Tensor) -> Tensor:
        self.leave(self.first(x))
        return self.second(torch.relu(self.skip)) + self.skip  # type: ignore[no-any-return]


class KeepsMeans(Keeps):
    """What another pass has left has the right shape here, and the wrong values."""

    def leave(self, x: Tensor) -> None:
        self.skip = x.mean(0, keepdim=True)


class RefusesWhatOthersLeft(Keeps):
    """What another pass has left makes this one raise an error of its own."""

    def forward(self, x: Tensor) -> Tensor:
        self.leave(self.first(x))
        y = self.second(torch.relu(self.skip))
        if len(self.skip) != len(x):
            raise KeyError("not mine")
        return y  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_keep_nothing_may_take_turns(name: str) -> None:
    assert can_interleave(build(name), images(name, 3))


@pytest.mark.parametrize("kind", [Keeps, KeepsMeans, RefusesWhatOthersLeft])
def test_a_network_that_keeps_tensors_on_itself_may_not(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().train()
    assert not can_interleave(model, torch.randn(3, 4))
    assert can_interleave(model, torch.randn(1, 4))  # a single image takes turns with nobody
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_a_network_that_fails_by_itself_says_so() -> None:
    with pytest.raises(ForeignError, match=r"RuntimeError: .*shapes cannot be multiplied"):
        can_interleave(Keeps(), torch.randn(3, 5))


def test_a_hook_of_ours_that_fails_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise IndexError("in our hook")

    monkeypatch.setattr(synchronised_passes, "first_given", fails)
    with pytest.raises(OwnFault, match="in our hook"):
        can_interleave(build("chain"), images("chain", 3))
    monkeypatch.setenv(STRICT, "0")  # a way around it, where there is one
    assert not can_interleave(build("chain"), images("chain", 3))
