"""One class for each sample: cross-entropy, accuracy, and the divergence of softened logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress import processes
from mint_compress.data.label_maps import NO_CLASS, with_class
from mint_compress.errors import MintError
from mint_compress.nn.io import tensors_in
from mint_compress.reporting import ACCURACY
from mint_compress.reporting.records import Metric
from mint_compress.training.targets import class_logits, fitted, is_binary, reading, within
from mint_compress.training.tasks.distance import output_distance
from mint_compress.training.tasks.protocol import Measurement, Task

LEAST_PROBABILITY = 1e-6
ENOUGH = 8
"""Values that do not all lie between 0 and 1 by chance."""
PROBABILITIES = "the outputs are probabilities: the loss is that of their logits"
NONE_HAS_A_CLASS = "No pixel to measure {} on has a class: all are 255 or -100. Check the labels."


@dataclass(frozen=True)
class Classification(Task):
    """Labels (n,) from 0 for logits (n, classes); one logit, (n, 1) or (n,), tells 1 from 0.

    Attributes
    ----------
    label_smoothing
        Share of each label that is spread over all classes, in [0, 1).
    temperature
        By which the logits of student and teacher are divided where they are compared.
    output
        Which of the outputs' tensors the logits are; None: found by :meth:`settled`.
    probabilities
        Whether that tensor holds probabilities, whose logarithm is taken.

    Raises
    ------
    MintError
        One is out of range.
    """

    label_smoothing: float = 0.1
    temperature: float = 4.0
    output: int | None = None
    probabilities: bool = False

    name: ClassVar[str] = "classification"
    metric: ClassVar[Metric] = Metric(ACCURACY, "%")

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise MintError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")
        if not 0 < self.temperature < math.inf:
            raise MintError(f"temperature must be above 0, got {self.temperature}.")

    @property
    def logits(self) -> int:  # type: ignore[override]
        """Which of the outputs' tensors the logits are."""
        return self.output or 0

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Classification:
        """Find the logits among several outputs, and see whether they are probabilities already."""
        found = list(tensors_in(outputs))
        place = self.output
        if place is None:
            place = self._logits_among(found, targets, asked)
        return replace(self, output=place, probabilities=self._passed(found[place]))

    @staticmethod
    def _passed(output: Tensor) -> bool:
        return are_probabilities(output, each=is_binary(output))

    def _logits_among(self, found: Sequence[Tensor], labels: Any, asked: bool) -> int:
        if len(found) < 2 or not isinstance(labels, Tensor) or not labels.numel():
            return 0
        numbers = labels[with_class(labels.long())]
        classes = max(2, int(numbers.max()) + 1) if numbers.numel() else 2
        fitting = [i for i, x in enumerate(found) if self._fits(x, labels)]
        exact = [i for i in fitting if is_binary(found[i]) or found[i].shape[1] == classes]
        wide = [i for i in fitting if found[i].shape[1] >= classes]
        for places in (exact, wide if asked else []):
            if places:
                return places[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in found)
        raise MintError(
            f"The labels have {classes} classes, and none of the network's outputs {shapes} has as many. "
            f"Give --task {self.name} to take the first that is wide enough, or the task that fits."
        )

    def _fits(self, output: Tensor, labels: Tensor) -> bool:
        return output.is_floating_point() and output.ndim in (1, 2)

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Labels must be whole numbers in 0..classes - 1; see :class:`Task`."""
        logits = self._raw(outputs)
        if not isinstance(targets, Tensor):
            raise MintError(f"{whose.capitalize()} has no labels, and {self.name} needs them.")
        fitted(targets, logits, whose)
        within(targets if every is None else every, logits, whose)
        said = reading(targets, logits)
        if self.logits:
            said += (f"output {self.logits + 1}, {tuple(logits.shape[1:])} a sample, holds the classes",)
        if self.probabilities:
            said += (PROBABILITIES,)
        return said

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy with label smoothing, in nats, the mean over the labels; 0 where none has a class."""
        raw = self._raw(outputs)
        numbers = fitted(targets, raw).to(raw.device)
        logits = self._logits(raw)
        if numbers.ndim > 1 and not with_class(numbers).any():
            return logits.sum() * 0
        return functional.cross_entropy(
            logits, numbers, ignore_index=NO_CLASS, label_smoothing=self.label_smoothing
        )

    def divergence(self, outputs: Any, taught: Any) -> Tensor:
        """temperature² * KL(teacher || student) of the softened logits, and the distance of other outputs.

        The square keeps the gradients' size independent of the temperature (Hinton et al., "Distilling the
        Knowledge in a Neural Network", 2015).
        """
        student = functional.log_softmax(self._logits(self._raw(outputs)) / self.temperature, 1)
        teacher = functional.log_softmax(self._logits(self._raw(taught)) / self.temperature, 1)
        apart = functional.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean()
        divergence = self.temperature**2 * apart
        others = [self._others(side) for side in (outputs, taught)]
        if any(x.is_floating_point() for x in others[0]):
            divergence = divergence + output_distance(*others)
        return divergence

    def meter(self) -> ClassMeter:
        """Counts what is right."""
        return ClassMeter(self)

    def predicted(self, outputs: Any) -> Tensor:
        """The class of every sample, or pixel: (n, ...) int64."""
        return self._logits(self._raw(outputs)).argmax(1)

    def sureness(self, outputs: Any) -> Tensor:
        """The probability of the class that is predicted, of every sample, or pixel: (n, ...)."""
        return functional.softmax(self._logits(self._raw(outputs)), 1).amax(1)

    def fitted(self, outputs: Any, targets: Tensor) -> Tensor:
        """Labels as class numbers, on the outputs' device."""
        raw = self._raw(outputs)
        return fitted(targets, raw).to(raw.device)

    def classes(self, outputs: Any) -> int:
        """How many the outputs tell apart."""
        raw = self._raw(outputs)
        return 2 if is_binary(raw) else int(raw.shape[1])

    def _others(self, outputs: Any) -> list[Tensor]:
        return [x for number, x in enumerate(tensors_in(outputs)) if number != self.logits]

    def _raw(self, outputs: Any) -> Tensor:
        for number, tensor in enumerate(tensors_in(outputs)):
            if number == self.logits:
                return tensor
        raise MintError(
            f"The network returns a {type(outputs).__name__} without a tensor; logits are needed."
        )

    def _logits(self, raw: Tensor) -> Tensor:
        raw = raw.float()
        if self.probabilities:
            raw = as_logits(raw) if is_binary(raw) else raw.clamp_min(LEAST_PROBABILITY).log()
        return class_logits(raw)


def as_logits(probabilities: Tensor) -> Tensor:
    """The logits whose sigmoid they are."""
    return torch.logit(probabilities.float(), eps=LEAST_PROBABILITY)


def are_probabilities(output: Tensor, *, each: bool) -> bool:
    """Whether an output has passed a sigmoid (``each`` value alone) or a softmax over its second dimension.

    Few values between 0 and 1 may be logits as well: they are taken for them.
    """
    if not output.is_floating_point() or not bool(((output >= 0) & (output <= 1)).all()):
        return False
    if each:
        return output.numel() >= ENOUGH
    sums = output.double().sum(1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


class ClassMeter:
    """Accuracy, and the recall of every class."""

    def __init__(self, task: Classification) -> None:
        self.task = task
        self.labelled, self.predicted, self.right = (torch.zeros(0, dtype=torch.int64) for _ in range(3))

    def update(self, outputs: Any, targets: Any) -> None:
        """Count how often each class was the label, the prediction, and both."""
        numbers = self.task.fitted(outputs, targets)
        kept = with_class(numbers)
        labels, predicted = numbers[kept], self.task.predicted(outputs)[kept]
        classes = self.task.classes(outputs)
        self.labelled = _added(self.labelled, torch.bincount(labels, minlength=classes))
        self.predicted = _added(self.predicted, torch.bincount(predicted, minlength=classes))
        self.right = _added(self.right, torch.bincount(labels[predicted == labels], minlength=classes))

    def add_up_(self) -> None:
        """Take in what all processes have counted."""
        counts = torch.stack([self.labelled, self.predicted, self.right])
        total = processes.summed({"counts": counts} if counts.numel() else {})
        self.labelled, self.predicted, self.right = total.get("counts", counts)

    def compute(self) -> Measurement:
        """What all batches come to."""
        total = int(self.labelled.sum())
        if not total:
            raise MintError(NONE_HAS_A_CLASS.format(self.task.metric.name))
        there = self.labelled > 0
        recall = self.right[there].double() / self.labelled[there]
        return Measurement(
            int(self.right.sum()) / total,
            {
                "balanced accuracy": float(recall.mean()),
                "share of the largest class": int(self.labelled.max()) / total,
            },
            shares(self.right, self.labelled),
            tuple(self.labelled.tolist()),
        )


def _added(sums: Tensor, counts: Tensor) -> Tensor:
    """Both, on the CPU; the first time ``sums`` is empty."""
    return counts.cpu() if not sums.numel() else sums + counts.cpu()


def shares(part: Tensor, whole: Tensor) -> tuple[float | None, ...]:
    """Each of (classes,) counts as a share of another; None where that is nothing."""
    pairs = zip(part.tolist(), whole.tolist(), strict=True)
    return tuple(some / every if every else None for some, every in pairs)
