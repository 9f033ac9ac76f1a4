"""Several classes at once: binary cross-entropy for each, and the mean average precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.classification import PROBABILITIES, are_probabilities, as_logits
from mint_compress.training.tasks.outputs import nth, place_of
from mint_compress.training.tasks.protocol import Measurement, Task


@dataclass(frozen=True)
class Multilabel(Task):
    """Targets (n, classes) of 0 and 1 for logits (n, classes).

    Attributes
    ----------
    output
        Which of the outputs' tensors they are for: the first of their shape.
    probabilities
        Whether that one has passed a sigmoid.
    """

    output: int = 0
    probabilities: bool = False

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[Metric] = Metric("mAP", "%")

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Multilabel:
        """Find the output of the targets' shape, and see whether it is a sigmoid's."""
        place = place_of(outputs, targets, lambda x, t: x.shape[1:] == t.shape[1:])
        return replace(self, output=place, probabilities=are_probabilities(nth(outputs, place), each=True))

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Targets must be 0 and 1, one for each output."""
        logits = nth(outputs, self.output)
        fits = isinstance(targets, Tensor) and targets.shape == logits.shape and logits.ndim == 2
        known = targets if every is None else every
        if not fits or not is_zero_or_one(known):
            raise MintError(
                f"The network's output {tuple(logits.shape)} does not fit the targets in {whose}, "
                f"{shapes_of(targets)}. multilabel takes 0 and 1 for each class, (n, classes)."
            )
        return (PROBABILITIES,) if self.probabilities else ()

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over samples and classes, in nats."""
        logits = nth(outputs, self.output).float()
        logits = as_logits(logits) if self.probabilities else logits
        return functional.binary_cross_entropy_with_logits(logits, targets.to(logits))

    def meter(self) -> PrecisionMeter:
        """Keeps scores and targets."""
        return PrecisionMeter(self.output)


def is_zero_or_one(targets: Any) -> bool:
    """Whether a tensor holds nothing else."""
    return isinstance(targets, Tensor) and bool(((targets == 0) | (targets == 1)).all())


class PrecisionMeter:
    """Average precision of every class, by torchmetrics."""

    def __init__(self, output: int) -> None:
        self.output = output
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Keep a batch."""
        self.scores.append(nth(outputs, self.output).double().cpu())
        self.targets.append(targets.long().cpu())

    def compute(self) -> Measurement:
        """The mean is over classes that have a positive."""
        from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

        scores, targets = torch.cat(self.scores), torch.cat(self.targets)
        if bool(((scores < 0) | (scores > 1)).any()):
            scores = scores.sigmoid()  # in float64: large logits must not tie
        found, f1 = {}, []
        for number in targets.any(0).nonzero().flatten().tolist():
            given = scores[:, number], targets[:, number]
            found[number] = float(binary_average_precision(*given))
            f1.append(float(binary_f1_score(*given)))
        if not found:
            raise MintError("No target is 1, so that there is no average precision. Check the targets.")
        return Measurement(
            sum(found.values()) / len(found),
            {"macro F1": sum(f1) / len(f1)},
            tuple(found.get(number) for number in range(targets.shape[1])),
            tuple(int(n) for n in targets.sum(0)),
        )
