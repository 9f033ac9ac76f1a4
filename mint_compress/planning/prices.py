"""What a position costs: the shares of the parameters, of the MACs and of the latency that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mint_compress.graph.costs import LayerShape
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.choices import removed_channels
from mint_compress.planning.latency import NetworkTimes


class Price(NamedTuple):
    """How much each share counts in the price of a position."""

    parameters: float
    macs: float
    latency: float = 0.0

    def towards(self, other: Price, part: float) -> Price:
        """Between the two: this one at 0, ``other`` at 1."""
        return Price(*(a + part * (b - a) for a, b in zip(self, other, strict=True)))


PRICES: Mapping[str, Price] = {
    "params": Price(1.0, 0.0),
    "both": Price(0.5, 0.5),
    "macs": Price(0.0, 1.0),
    "latency": Price(0.0, 0.0, 1.0),
}
"""Of each ``--cost``."""
FREE = 1e-12
"""The price of what costs nothing, lest it be divided by."""


class Shares(NamedTuple):
    """Of all that the network counts, what goes with one position of a group."""

    parameters: float
    macs: float
    latency: float = 0.0

    def at(self, price: Price) -> float:
        """What the position costs."""
        return max(sum(share * weight for share, weight in zip(self, price, strict=True)), FREE)


def shares_of(group: ChannelGroup, times: NetworkTimes | None = None) -> Shares:
    """The shares of one position, on average over the group, each layer shrinking by one side at a time."""
    network = group.network
    cut = removed_channels([group], [np.ones(group.width, dtype=np.bool_)])
    parameters = macs = milliseconds = 0.0
    for name, (inside, outside) in cut.items():
        layer = network.layers.get(name, LayerShape())  # a normalisation without parameters
        for gone, total in ((inside, layer.inputs), (outside, layer.outputs)):
            if gone and total:
                parameters += layer.parameters * gone / total / group.width
                macs += layer.macs * gone / total / group.width
        if times is not None and name in times.layers:
            by_side = times.layers[name].saved_by_side()
            milliseconds += (inside * by_side[0] + outside * by_side[1]) / group.width
    macs += network.product_macs_of(group.name) / group.width
    return Shares(
        parameters / network.parameters,
        macs / max(network.macs, 1),
        milliseconds / times.whole if times is not None else 0.0,
    )
