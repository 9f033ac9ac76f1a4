"""What one epoch came to."""

from __future__ import annotations

from dataclasses import dataclass

from mint_compress.reporting.records import Metric


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to.

    Attributes
    ----------
    epoch
        Counted from 1.
    loss
        Mean training loss over the epoch's batches.
    validation
        The task's metric on the validation images; None without them.
    seconds
        Wall time, validation included.
    metric
        What ``validation`` is measured in.
    """

    epoch: int
    loss: float
    validation: float | None
    seconds: float
    metric: Metric

    def __str__(self) -> str:
        held_out = "" if self.validation is None else f", validation {self.metric.shown(self.validation)}"
        return f"epoch {self.epoch}: loss {self.loss:.4f}{held_out}, {self.seconds:.1f} s"
