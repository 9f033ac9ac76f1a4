"""No labels: what the original says is the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress import processes
from mint_compress.errors import MintError
from mint_compress.nn.io import first_tensor, tensors_in
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.embedding import Embedding
from mint_compress.training.tasks.protocol import Measurement, Meter, Task
from mint_compress.training.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Imitation(Task):
    """The original's outputs are the targets; those of the data are not looked at.

    Attributes
    ----------
    of
        What the network is for, where that is known: a classifier is then measured by the samples on which
        both give the same class, a segmenter by the pixels, an embedding by the cosine. Otherwise, and for
        all other tasks, by the share of the outputs' variance that is kept.
    """

    of: Task | None = None

    name: ClassVar[str] = "imitation"
    trained_on_original: ClassVar[bool] = True
    measured_on_original: ClassVar[bool] = True

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """See :class:`Imitation`."""
        return Metric(self._measures()[0], "%")

    @property
    def logits(self) -> int | None:  # type: ignore[override]
        """Where the logits of the task are."""
        return None if self.of is None else self.of.logits

    def settled(self, outputs: Any, targets: Any, *, asked: bool) -> Imitation:
        """See :class:`Task`."""
        return self if self.of is None else Imitation(self.of.settled(outputs, None, asked=asked))

    def divergence(self, outputs: Any, taught: Any) -> Tensor:
        """That of the task."""
        return super().divergence(outputs, taught) if self.of is None else self.of.divergence(outputs, taught)

    def meter(self) -> Meter:
        """Compares outputs with outputs."""
        measure = self._measures()[1]
        return AgreementMeter() if measure is None else MeanMeter(measure)

    def _measures(self) -> tuple[str, Callable[[Any, Any], Tensor] | None]:
        task = self.of
        if isinstance(task, Classification):
            name = "pixels same" if isinstance(task, Segmentation) else "top-1 same"
            return name, lambda ours, theirs: task.predicted(ours) == task.predicted(theirs)
        if isinstance(task, Embedding):
            return "cosine", lambda ours, theirs: functional.cosine_similarity(
                first_tensor(ours).float(), first_tensor(theirs).float(), 1
            )
        return "agreement", None


ROUNDING = 1e-6
"""Of an output's magnitude: what differs by less from sample to sample is the same."""


class MeanMeter:
    """The mean of what a function of both outputs gives for each sample, or pixel."""

    def __init__(self, measure: Callable[[Any, Any], Tensor]) -> None:
        self.measure = measure
        self.total, self.count = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""
        found = self.measure(outputs, targets)
        self.total += float(found.double().sum())
        self.count += found.numel()

    def add_up_(self) -> None:
        """Take in what all processes have found."""
        self.total, self.count = map(sum, zip(*processes.gathered((self.total, self.count)), strict=True))

    def compute(self) -> Measurement:
        """What all batches come to."""
        return Measurement(self.total / self.count)


class AgreementMeter:
    """1 - squared difference / variance of the original, for each output; the mean over the outputs.

    The variance is that of each position of an output over the samples: what is the same for all samples,
    such as an anchor's place, explains nothing.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift: list[Tensor] = []
        self.sums: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.sizes: list[float] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""
        pairs = [
            (ours.double().cpu(), theirs.double().cpu())
            for ours, theirs in zip(tensors_in(outputs), tensors_in(targets), strict=False)
            if theirs.is_floating_point()
        ]
        if not pairs or any(ours.shape != theirs.shape for ours, theirs in pairs):
            has, wants = ([tuple(x.shape) for x in tensors_in(side)] for side in (outputs, targets))
            raise MintError(
                f"The networks return outputs of shapes {has} and {wants}, which cannot be compared. "
                "Give --task or --metric."
            )
        if not self.shift:  # sums of squares around it do not cancel
            self.shift = [theirs.mean(0) for _, theirs in pairs]
            zeros = [torch.zeros_like(shift) for shift in self.shift]
            self.sums, self.squares, self.errors = zeros, list(zeros), list(zeros)
            self.sizes = [0.0] * len(pairs)
        self.count += len(pairs[0][1])
        for i, (ours, theirs) in enumerate(pairs):
            off = theirs - self.shift[i]
            self.sums[i] = self.sums[i] + off.sum(0)
            self.squares[i] = self.squares[i] + off.square().sum(0)
            self.errors[i] = self.errors[i] + (ours - theirs).square().sum(0)
            self.sizes[i] += float(theirs.square().sum())

    def compute(self) -> Measurement:
        """Outputs that are the same for all samples do not count, unless there are no others."""
        kept = []
        for sums, squares, errors, size in zip(self.sums, self.squares, self.errors, self.sizes, strict=True):
            variance, error = float((squares - sums.square() / self.count).sum()), float(errors.sum())
            rounding = ROUNDING**2 * size
            kept.append(1 - error / variance if variance > rounding else 1.0 - float(error > rounding))
        each = {f"output {i + 1}": value for i, value in enumerate(kept)} if len(kept) > 1 else {}
        return Measurement(sum(kept) / len(kept), each)
