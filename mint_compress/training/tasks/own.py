"""A loss or a metric of the user's in the place of a task's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError, foreign
from mint_compress.nn.io import Inputs, tensors_in
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.protocol import Measurement, Meter, Task


@dataclass(frozen=True)
class Own(Task):
    """Another task with its loss, its metric, or both replaced.

    Attributes
    ----------
    task
        Whose part the rest is.
    own_loss
        Of (outputs, targets); gives a scalar with a gradient.
    own_metric
        Of (outputs, targets), the mean over the samples; or a torchmetrics class, or one of its objects.
        ``higher_is_better`` (by default True) and ``unit`` are looked for on it.
    """

    task: Task
    own_loss: Callable[[Any, Any], Tensor] | None = None
    own_metric: Any = None

    calls_with_targets: ClassVar[bool] = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the task."""
        return self.task.name

    @property
    def logits(self) -> int | None:  # type: ignore[override]
        """That of the task."""
        return self.task.logits

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """Named as the function or class is."""
        if self.own_metric is None:
            return self.task.metric
        higher = getattr(self.own_metric, "higher_is_better", True)
        return Metric(named(self.own_metric), str(getattr(self.own_metric, "unit", "")), higher is not False)

    @property
    def trained_on_original(self) -> bool:  # type: ignore[override]
        """Not where there is a loss."""
        return self.own_loss is None and self.task.trained_on_original

    @property
    def measured_on_original(self) -> bool:  # type: ignore[override]
        """Not where there is a metric."""
        return self.own_metric is None and self.task.measured_on_original

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Own:
        """See :class:`Task`."""
        return Own(self.task.settled(outputs, targets, asked=asked), self.own_loss, self.own_metric)

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Try both on a few samples."""
        if self.own_metric is not None:
            meter = self.meter()
            meter.update(outputs, targets)
            meter.compute()
        if self.own_loss is not None:
            with torch.enable_grad():
                probe = _with_gradients(outputs)
                loss = self.loss(probe, targets)
            if not loss.requires_grad:
                raise MintError(
                    f"The loss {named(self.own_loss)} has no gradient. Compute it from the outputs."
                )
        if self.own_loss is None or self.own_metric is None:
            return self.task.check(outputs, targets, whose, every)
        return ()

    def forward(self, model: nn.Module, inputs: Inputs, targets: Any) -> Any:
        """That of the task, unless the loss is the user's."""
        if self.own_loss is None:
            return self.task.forward(model, inputs, targets)
        return super().forward(model, inputs, targets)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The user's, or the task's."""
        if self.own_loss is None:
            return self.task.loss(outputs, targets)
        with foreign(f"The loss {named(self.own_loss)}"):
            loss = self.own_loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise MintError(
                f"The loss {named(self.own_loss)} gives {shapes_of(loss)}. It must give one number."
            )
        return loss.reshape(())

    def divergence(self, outputs: Any, taught: Any) -> Tensor:
        """That of the task."""
        return self.task.divergence(outputs, taught)

    def meter(self) -> Meter:
        """The user's, or the task's."""
        return self.task.meter() if self.own_metric is None else OwnMeter(self.own_metric)


def named(thing: Any) -> str:
    """What a function, a class or an object is called."""
    return str(getattr(thing, "__name__", type(thing).__name__))


def _alone() -> bool:
    return False


def _with_gradients(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.detach().clone().requires_grad_(outputs.is_floating_point())
    if isinstance(outputs, dict):
        return {key: _with_gradients(value) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        made = [_with_gradients(value) for value in outputs]
        return type(outputs)(*made) if hasattr(outputs, "_fields") else type(outputs)(made)
    return outputs


class OwnMeter:
    """Feeds a torchmetrics object, or takes the mean of a function over the samples."""

    def __init__(self, metric: Any) -> None:
        self.name = named(metric)
        with foreign(f"The metric {self.name}"):
            made = metric() if isinstance(metric, type) else metric
            self.object = made if hasattr(made, "update") and hasattr(made, "compute") else None
            if self.object is not None and hasattr(made, "reset"):
                made.reset()
            if hasattr(made, "distributed_available_fn"):
                # torchmetrics would wait for other processes, of which this may be the only one that measures
                made.distributed_available_fn = _alone
        self.function = metric
        self.total, self.count = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        first = next(tensors_in(outputs), None)
        with foreign(f"The metric {self.name}"):
            if self.object is not None:
                if first is not None and hasattr(self.object, "to"):
                    self.object.to(first.device)
                self.object.update(outputs, targets)
                return
            found = self.function(outputs, targets)
        samples = 1 if first is None else len(first)
        self.total += self._number(found) * samples
        self.count += samples

    def compute(self) -> Measurement:
        """What all batches come to."""
        if self.object is None:
            return Measurement(self.total / max(self.count, 1))
        with foreign(f"The metric {self.name}"):
            found = self.object.compute()
        return Measurement(self._number(found))

    def _number(self, found: Any) -> float:
        whole = found.numel() == 1 if isinstance(found, Tensor) else isinstance(found, Real)
        if not whole or not math.isfinite(float(found)):
            raise MintError(f"The metric {self.name} gives {found!r:.60}. It must give one finite number.")
        return float(found)
