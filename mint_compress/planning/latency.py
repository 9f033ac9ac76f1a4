"""How long a network takes with fewer channels, from the times of its layers at a few widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mint_compress.graph.costs import Network
from mint_compress.reporting.records import LayerTime

Grid = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Milliseconds of one layer, by how many of its channels are there.

    Attributes
    ----------
    inputs, outputs
        ``(i,)`` and ``(o,)`` channels on each side, rising, the last of them all there are. A layer whose
        channels are both has one entry for its inputs, which does not count.
    ms
        ``(i, o)``, not falling along either side.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: Grid = field(repr=False)

    @property
    def whole(self) -> float:
        """With all channels."""
        return float(self.ms[-1, -1])

    def at(self, inputs: float, outputs: float) -> float:
        """With so many on each side: on the straight line between the widths that were measured.

        Below the smallest of them it goes on straight, never below zero.
        """
        by_outputs = [_line(self.inputs, column, inputs) for column in self.ms.T]
        return max(0.0, _line(self.outputs, np.array(by_outputs), outputs))

    def saved_by_side(self) -> tuple[float, float]:
        """What one channel less saves on each side, on the way down to the smallest width."""
        saved = []
        for widths, ends in ((self.inputs, self.ms[:, -1]), (self.outputs, self.ms[-1])):
            gone = widths[-1] - widths[0]
            saved.append(float(ends[-1] - ends[0]) / gone if gone else 0.0)
        return saved[0], saved[1]


def layer_times(inputs: tuple[int, ...], outputs: tuple[int, ...], ms: Grid) -> LayerTimes:
    """What was measured, without the noise that would make a wider layer faster than a narrower one."""
    rising = np.maximum.accumulate(np.maximum.accumulate(ms, axis=0), axis=1)
    return LayerTimes(inputs, outputs, rising)


def _line(widths: tuple[int, ...], values: Grid, width: float) -> float:
    """Between the points, and straight on below the first."""
    if len(widths) > 1 and width < widths[0]:
        slope = (values[1] - values[0]) / (widths[1] - widths[0])
        return float(values[0] - slope * (widths[0] - width))
    return float(np.interp(width, widths, values))


@dataclass(frozen=True, eq=False)
class NetworkTimes:
    """What removing channels of a network saves.

    Attributes
    ----------
    whole
        Milliseconds of the whole network.
    layers
        Layer -> its times; what is not in here stays as it is.
    """

    whole: float
    layers: Mapping[str, LayerTimes] = field(repr=False)

    @property
    def in_layers(self) -> float:
        """Milliseconds of all layers, each run alone."""
        return sum(times.whole for times in self.layers.values())

    def of_layers(self, network: Network, removed: Mapping[str, tuple[int, int]]) -> tuple[LayerTime, ...]:
        """Each layer with and without what goes, the slowest first."""
        found = []
        for name, times in self.layers.items():
            inside, outside = removed.get(name, (0, 0))
            shape = network.layers[name]
            after = times.at(shape.inputs - inside, shape.outputs - outside)
            found.append(LayerTime(name, times.whole, after))
        return tuple(sorted(found, key=lambda one: -one.before))

    def saved(self, network: Network, removed: Mapping[str, tuple[int, int]]) -> float:
        """Milliseconds saved in the layers where so many (input, output) channels of them go."""
        return sum(one.before - one.after for one in self.of_layers(network, removed))
