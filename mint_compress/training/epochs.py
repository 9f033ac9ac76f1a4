"""What one epoch came to."""

from __future__ import annotations

from dataclasses import dataclass


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
        Accuracy on the validation images, a share in 0..1; None without them.
    seconds
        Wall time, validation included.
    """

    epoch: int
    loss: float
    validation: float | None
    seconds: float

    def __str__(self) -> str:
        held_out = "" if self.validation is None else f", validation {100 * self.validation:.2f} %"
        return f"epoch {self.epoch}: loss {self.loss:.4f}{held_out}, {self.seconds:.1f} s"
