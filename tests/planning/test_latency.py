"""What removing channels saves, by the times of single layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import build, images

from mint_compress.errors import MintError
from mint_compress.graph.finding import find_groups
from mint_compress.planning.choices import removed_channels
from mint_compress.planning.latency import LayerTimes, NetworkTimes, layer_times
from mint_compress.planning.prices import PRICES, Price, shares_of
from mint_compress.planning.search import most_removed, plan
from mint_compress.scoring.scores import ChannelScores
from mint_compress.settings import Budget


def bilinear() -> LayerTimes:
    """3 ms and 2 input x output channels a microsecond."""
    inputs, outputs = (8, 32, 64), (16, 128)
    return layer_times(inputs, outputs, 3 + 0.002 * np.outer(inputs, outputs))


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (40, 16), (33, 77), (4, 128), (8, 8)])
def test_between_and_below_the_widths_a_bilinear_time_is_exact(inputs: int, outputs: int) -> None:
    assert bilinear().at(inputs, outputs) == pytest.approx(3 + 0.002 * inputs * outputs)


def test_no_time_is_below_zero() -> None:
    assert LayerTimes((8, 16), (4, 8), np.array([[1.0, 2.0], [5.0, 9.0]])).at(0, 0) == 0


def test_a_wider_layer_is_never_faster() -> None:
    times = layer_times((8, 16), (8, 16), np.array([[2.0, 1.0], [1.5, 4.0]]))
    assert times.ms.tolist() == [[2.0, 2.0], [2.0, 4.0]]


def test_what_a_channel_saves_on_each_side() -> None:
    by_inputs, by_outputs = bilinear().saved_by_side()
    assert by_inputs == pytest.approx(0.002 * 128)
    assert by_outputs == pytest.approx(0.002 * 64)


def test_a_layer_whose_channels_are_both_has_one_side() -> None:
    times = layer_times((0,), (8, 16), np.array([[1.0, 3.0]]))
    assert times.at(0, 12) == 2
    assert times.saved_by_side() == (0, 0.25)


def test_prices_meet_half_way() -> None:
    assert PRICES["params"].towards(PRICES["macs"], 0.25) == Price(0.75, 0.25)


class TestPlans:
    """On a chain of two convolutions, of which the second takes all the time."""

    groups = find_groups(build("chain"), images("chain"))
    network = groups[0].network
    free = layer_times((3,), (1, 6), np.zeros((1, 2)))
    slow = layer_times((1, 6), (1, 5), 2.0 * np.outer((1, 6), (1, 5)))
    times = NetworkTimes(70.0, {"conv1": free, "conv2": slow})

    def scores(self) -> ChannelScores:
        nats = {g.name: torch.ones(g.width, dtype=torch.float64) for g in self.groups if g.prunable}
        return ChannelScores(nats, "gaussian", 1, 0)

    def test_what_a_plan_saves_is_what_its_layers_save(self) -> None:
        budget = Budget(cost="latency", round_to=1)
        chosen = plan(self.groups, self.scores(), budget, times=self.times, saving=21.0)
        gone = {g.group: len(g.removed) for g in chosen.groups}
        inputs, outputs = 6 - gone["conv1"], 5 - gone["conv2"]
        assert 60 - 2.0 * inputs * outputs >= 21
        masks = [
            np.isin(np.arange(g.width), next(c.removed for c in chosen.groups if c.group == g.name))
            for g in self.groups
            if g.prunable
        ]
        removed = removed_channels([g for g in self.groups if g.prunable], masks)
        assert self.times.saved(self.network, removed) == pytest.approx(60 - 2.0 * inputs * outputs)

    def test_the_dearest_position_goes_first(self) -> None:
        """An output of conv2 saves 12 ms, an input 10: at equal nats, outputs go."""
        shares = {g.name: shares_of(g, self.times).latency for g in self.groups if g.prunable}
        assert shares == {"conv1": pytest.approx(10 / 70), "conv2": pytest.approx(12 / 70)}
        chosen = plan(self.groups, self.scores(), Budget(round_to=1), times=self.times, saving=12.0)
        by_latency = plan(
            self.groups, self.scores(), Budget(round_to=1, cost="latency"), times=self.times, saving=12.0
        )
        assert {g.group: len(g.removed) for g in by_latency.groups} == {"conv1": 0, "conv2": 1}
        assert chosen.asked is None

    def test_more_than_can_go_is_an_error(self) -> None:
        with pytest.raises(MintError, match=r"of the latency cannot go: the most is"):
            plan(self.groups, self.scores(), Budget(), times=self.times, saving=69.0)

    def test_latency_without_times_is_an_error(self) -> None:
        with pytest.raises(MintError, match="Give the times of the layers"):
            plan(self.groups, self.scores(), Budget(0.5, cost="latency"))

    def test_both_goals_are_reached(self) -> None:
        chosen = plan(self.groups, self.scores(), Budget(0.6, round_to=1), times=self.times, saving=1.0)
        assert chosen.removed >= 0.6
        most = most_removed(self.groups, Budget())
        assert most is not None
        assert replace(chosen, asked=None).removed <= most.removed
