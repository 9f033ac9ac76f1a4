"""What the layers of a network count, as a function of their channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    """

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    per_output: int = 0
    fixed: int = 0
    macs: int = 0

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


@dataclass(frozen=True)
class Network:
    """Every layer that has parameters, by qualified name."""

    layers: Mapping[str, LayerShape] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Parameters of the whole network."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def macs(self) -> int:
        """MACs of one sample."""
        return sum(layer.macs for layer in self.layers.values())
