"""Several classes at once: binary cross-entropy for each, and the mean average precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError
from mint_compress.nn.io import first_tensor
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.protocol import Measurement, Task


@dataclass(frozen=True)
class Multilabel(Task):
    """Targets (n, classes) of 0 and 1 for logits (n, classes)."""

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[Metric] = Metric("mAP", "%")

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Targets must be 0 and 1, one for each output."""
        logits = first_tensor(outputs)
        fits = isinstance(targets, Tensor) and targets.shape == logits.shape and logits.ndim == 2
        known = targets if every is None else every
        if not fits or not is_zero_or_one(known):
            raise MintError(
                f"The network's output {tuple(logits.shape)} does not fit the targets in {whose}, "
                f"{shapes_of(targets)}. multilabel takes 0 and 1 for each class, (n, classes)."
            )
        return ()

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over samples and classes, in nats."""
        logits = first_tensor(outputs).float()
        return functional.binary_cross_entropy_with_logits(logits, targets.to(logits))

    def meter(self) -> PrecisionMeter:
        """Keeps scores and targets."""
        return PrecisionMeter()


def is_zero_or_one(targets: Any) -> bool:
    """Whether a tensor holds nothing else."""
    return isinstance(targets, Tensor) and bool(((targets == 0) | (targets == 1)).all())


class PrecisionMeter:
    """Average precision of every class, by torchmetrics."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Keep a batch."""
        self.scores.append(first_tensor(outputs).float().cpu())
        self.targets.append(targets.long().cpu())

    def compute(self) -> Measurement:
        """The mean is over classes that have a positive."""
        from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

        scores, targets = torch.cat(self.scores).sigmoid(), torch.cat(self.targets)
        classes = targets.shape[1]
        each = multilabel_average_precision(scores, targets, num_labels=classes, average="none")
        precisions = [each] if classes == 1 else list(each)
        found = tuple(
            float(value) if int(column.sum()) and math.isfinite(value) else None
            for value, column in zip(precisions, targets.T, strict=True)
        )
        there = [value for value in found if value is not None]
        if not there:
            raise MintError("No target is 1, so that there is no average precision. Check the targets.")
        f1 = float(multilabel_f1_score(scores, targets, num_labels=classes, average="macro"))
        return Measurement(
            sum(there) / len(there), {"macro F1": f1}, found, tuple(int(n) for n in targets.sum(0))
        )
