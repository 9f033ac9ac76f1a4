"""Whose fault it is when a trial removal fails: the network's, or ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from mint_compress.errors import STRICT, MintError, OwnFault
from mint_compress.graph import removal_check
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.reference import reference_copy, reference_run
from mint_compress.graph.removal_check import removable
from mint_compress.surgery.slicing import CannotCut, cut_


def reasons(name: str) -> dict[str, str | None]:
    return {g.name: g.reason for g in find_groups(build(name), images(name))}


def tried(name: str, groups: Sequence[ChannelGroup]) -> dict[str, str | None]:
    copy, inputs = reference_copy(build(name), (images(name),))
    return {g.name: g.reason for g in removable(reference_run(copy, inputs), groups)}


@pytest.mark.parametrize("strict", ["", "1"])
def test_a_forward_that_fails_on_a_smaller_width_is_the_networks_fault(
    strict: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(STRICT, strict)
    reason = reasons("fixed_shape")["conv1"]
    assert reason is not None
    assert reason.startswith(
        "its channels cannot be removed: the network then fails (RuntimeError: shape '[-1, 6, "
    )
    assert not caplog.records


def fails_at(layer: str) -> object:
    def cut(model: nn.Module, name: str, *args: object) -> None:
        if name == layer:
            raise KeyError("a fault of ours")
        cut_(model, name, *args)  # type: ignore[arg-type]

    return cut


def test_a_cut_that_fails_comes_out_in_strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = find_groups(build("chain"), images("chain"))
    monkeypatch.setattr(removal_check, "cut_", fails_at("fc"))
    with pytest.raises(KeyError, match="a fault of ours"):
        tried("chain", groups)


def test_otherwise_it_costs_the_groups_of_that_layer_and_says_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(STRICT, "")
    before = reasons("chain")
    monkeypatch.setattr(removal_check, "cut_", fails_at("fc"))
    with caplog.at_level(logging.WARNING):
        after = reasons("chain")
    said = "mint-compress fails at it (KeyError: 'a fault of ours'); please report it"
    # conv2 feeds fc; conv1 does not
    assert before == {**after, "conv2": None}
    assert after["conv2"] == f"its channels cannot be removed: {said}" and after["conv1"] is None
    assert {r.getMessage() for r in caplog.records} == {f"conv2 is left alone: {said}"}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.norm(self.one(x))
        except Exception:  # a user's code that takes whatever goes wrong for its own
            x = self.one(x)
        result: Tensor = self.two(x)
        return result


def test_a_fault_of_ours_inside_the_forward_pass_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("a fault of ours")

    monkeypatch.setattr(removal_check._NoStatistics, "_held_down", staticmethod(broken))
    with pytest.raises(OwnFault, match="IndexError: a fault of ours"):
        find_groups(Normed(), torch.randn(2, 5))
    monkeypatch.setenv(STRICT, "")
    groups = {g.name: g.reason for g in find_groups(Normed(), torch.randn(2, 5))}
    assert groups["one"] == (
        "its channels cannot be removed: "
        "mint-compress fails at it (IndexError: a fault of ours); please report it"
    )


def test_a_grouped_transposed_convolution_is_refused_and_not_cut_wrongly() -> None:
    said = "ConvTranspose2d with channel groups cannot be cut (up)"
    assert reasons("grouped_transposed")["up"] == f"its channels cannot be removed: {said}"
    model = build("grouped_transposed")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for side in ("in", "out"):
        with pytest.raises(CannotCut, match="cannot be cut"):
            cut_(model, "up", "conv", side, -1, [0])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert issubclass(CannotCut, MintError)
