"""What a position costs: the shares of the network's parameters and of its MACs that go with it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mint_compress.graph.costs import LayerShape
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.choices import removed_channels

MACS_WEIGHT = {"params": 0.0, "both": 0.5, "macs": 1.0}
"""Cost -> weight of a position's share of the MACs in its price, beside that of the parameters."""
FREE = 1e-12
"""The price of what costs nothing, lest it be divided by."""


class Shares(NamedTuple):
    """Of all that the network counts, what goes with one position of a group."""

    parameters: float
    macs: float

    def price(self, macs_weight: float) -> float:
        """The share of the MACs with this weight, in [0, 1], and that of the parameters with the rest."""
        return max((1 - macs_weight) * self.parameters + macs_weight * self.macs, FREE)


def shares_of(group: ChannelGroup) -> Shares:
    """The shares of one position, on average over the group, each layer shrinking by one side at a time."""
    network = group.network
    cut = removed_channels([group], [np.ones(group.width, dtype=np.bool_)])
    parameters = macs = 0.0
    for name, (inside, outside) in cut.items():
        layer = network.layers.get(name, LayerShape())  # a normalisation without parameters
        for gone, total in ((inside, layer.inputs), (outside, layer.outputs)):
            if gone and total:
                parameters += layer.parameters * gone / total / group.width
                macs += layer.macs * gone / total / group.width
    macs += network.product_macs_of(group.name) / group.width
    return Shares(parameters / network.parameters, macs / max(network.macs, 1))
