"""What the layers of a network count, as a function of their channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LayerShape:
    """What one layer counts, as a function of its channels.

    Attributes
    ----------
    inputs, outputs
        Channels on each side; a layer whose channels are both (a norm) has only outputs.
    weights
        Elements of the weight, which scale with both sides.
    per_output
        Further parameters per output channel (the bias).
    fixed
        Parameters that do not scale.
    macs
        Multiply-accumulate operations of one sample; they scale as the weights do.
    called
        Whether the layer itself does them: a network can also compute with the weight of a layer that it
        does not call.
    """

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    per_output: int = 0
    fixed: int = 0
    macs: int = 0
    called: bool = True

    @property
    def parameters(self) -> int:
        """All parameters of the layer."""
        return self.weights + self.per_output * self.outputs + self.fixed

    def after(self, inputs_gone: int, outputs_gone: int) -> tuple[int, int]:
        """Parameters and MACs once so many channels are gone on each side."""
        inputs, outputs = self.inputs - inputs_gone, self.outputs - outputs_gone
        scale, whole = outputs * (inputs or 1), self.outputs * (self.inputs or 1) or 1
        weights = self.weights * scale // whole
        return weights + self.per_output * outputs + self.fixed, self.macs * scale // whole


@dataclass(frozen=True, eq=False)
class Dimension:
    """A dimension of a product along which channels run.

    Attributes
    ----------
    size
        All indices of it.
    positions
        Group -> the position that each index follows, of those that follow one of that group.
    """

    size: int
    positions: Mapping[str, NDArray[np.int64]] = field(repr=False)

    def left(self, removed: Mapping[str, Mask]) -> int:
        """Indices that are left, by group -> ``(width,)`` mask of the positions that go."""
        return self.size - sum(int(removed[g][p].sum()) for g, p in self.positions.items() if g in removed)


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix product beside the layers, such as attention's two, as a function of the channel groups.

    Attributes
    ----------
    module
        The module in which it happens.
    macs
        Multiply-accumulate operations of one sample.
    dimensions
        Those of its dimensions that follow channels which may go; its MACs scale with each of them.
    predicted
        Whether these are all: if not, it may do fewer MACs than are expected of it.
    """

    module: str
    macs: int
    dimensions: tuple[Dimension, ...] = ()
    predicted: bool = True

    def after(self, removed: Mapping[str, Mask]) -> int:
        """MACs once these positions, group -> ``(width,)`` mask, are gone."""
        left = math.prod(d.left(removed) for d in self.dimensions)
        return self.macs * left // math.prod(d.size for d in self.dimensions)

    def following(self, group: str) -> float:
        """MACs that each dimension by itself would lose with all positions of a group, added up."""
        followed = ((d.positions.get(group), d.size) for d in self.dimensions)
        return sum(self.macs * len(positions) / size for positions, size in followed if positions is not None)


@dataclass(frozen=True)
class Network:
    """Every layer that has parameters, by qualified name, and the products beside the layers."""

    layers: Mapping[str, LayerShape] = field(repr=False)
    products: tuple[Product, ...] = field(repr=False, default=())

    @property
    def parameters(self) -> int:
        """Parameters of the whole network."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def macs(self) -> int:
        """MACs of one sample."""
        return sum(layer.macs for layer in self.layers.values()) + sum(p.macs for p in self.products)

    @property
    def unpredicted(self) -> tuple[Product, ...]:
        """Products of which nobody can say how many MACs they will do in a smaller network."""
        return tuple(p for p in self.products if not p.predicted)

    def product_macs(self, removed: Mapping[str, Mask]) -> int:
        """MACs of all products once these positions, group -> ``(width,)`` mask, are gone."""
        return sum(product.after(removed) for product in self.products)

    def product_macs_of(self, group: str) -> float:
        """MACs of products that follow a group, see :meth:`Product.following`."""
        return sum(product.following(group) for product in self.products)
