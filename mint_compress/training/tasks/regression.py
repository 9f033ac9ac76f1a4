"""Numbers: the mean squared error, and the share of the targets' variance that is explained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.outputs import nth, place_of
from mint_compress.training.tasks.protocol import Measurement, Task


@dataclass(frozen=True)
class Regression(Task):
    """Targets of floats in the shape of an output; (n,) is taken for (n, 1) too.

    Attributes
    ----------
    output
        Which of the outputs' tensors they are for: the first of their shape.
    """

    output: int = 0

    name: ClassVar[str] = "regression"
    metric: ClassVar[Metric] = Metric("R²")

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Regression:
        """Find the output of the targets' shape."""
        return replace(self, output=place_of(outputs, targets, fits))

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Targets must have the shape of the output."""
        output = nth(outputs, self.output)
        if not isinstance(targets, Tensor) or not fits(output, targets):
            raise MintError(
                f"The network's output {tuple(output.shape)} does not fit the targets in {whose}, "
                f"{shapes_of(targets)}. regression takes numbers of the output's shape."
            )
        known = targets if every is None else every
        if not bool(torch.isfinite(known.double()).all()):
            raise MintError(f"{whose.capitalize()} has targets that are NaN or infinite. Remove them.")
        if self.output:
            return (
                f"output {self.output + 1}, {tuple(output.shape[1:])} a sample, is what the targets are for",
            )
        return ()

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean squared error, over samples and outputs."""
        output = nth(outputs, self.output).float()
        return (output - targets.to(output).reshape(output.shape)).square().mean()

    def meter(self) -> VarianceMeter:
        """Adds up squares."""
        return VarianceMeter(self.output)


def fits(output: Tensor, targets: Tensor) -> bool:
    """Whether there is a target for every output."""
    return output.shape == targets.shape or (output.ndim == 2 and output.shape == (*targets.shape, 1))


class VarianceMeter:
    """R² of every column of (n, columns) outputs, or of all values of larger ones; added up in float64."""

    def __init__(self, output: int) -> None:
        self.output = output
        self.count = self.values = 0
        self.sum = self.squares = self.error = torch.zeros((), dtype=torch.float64)
        self.absolute = 0.0
        self.shift: Tensor | None = None

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""
        output = nth(outputs, self.output).double().cpu()
        wanted = targets.double().cpu().reshape(output.shape)
        columns = (len(output), -1) if output.ndim <= 2 else (output.numel(), 1)
        given, wanted = output.reshape(columns), wanted.reshape(columns)
        if self.shift is None:  # sums of squares around it do not cancel
            self.shift = wanted.mean(0)
        self.count += len(given)
        self.values += given.numel()
        self.sum = self.sum + (wanted - self.shift).sum(0)
        self.squares = self.squares + (wanted - self.shift).square().sum(0)
        self.error = self.error + (given - wanted).square().sum(0)
        self.absolute += float((given - wanted).abs().sum())

    def compute(self) -> Measurement:
        """The mean over columns that vary."""
        variance = self.squares - self.sum.square() / max(self.count, 1)
        varies = variance > 1e-12 * self.squares.clamp_min(1e-300)
        if not bool(varies.any()):
            raise MintError("The targets are constant, so that there is no R². Give another --metric.")
        explained = 1 - self.error[varies] / variance[varies]
        return Measurement(
            float(explained.mean()),
            {
                "MAE": self.absolute / self.values,
                "RMSE": float((self.error.sum() / self.values).sqrt()),
            },
        )
