"""Vectors whose angles say what is alike: held to the original's, and measured by retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError
from mint_compress.nn.io import first_tensor, tensors_in
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.distance import output_distance
from mint_compress.training.tasks.protocol import Measurement, Task

ROWS = 1024
"""Vectors that are compared with all others at a time."""


@dataclass(frozen=True)
class Embedding(Task):
    """Vectors (n, dimensions), with labels (n,) that say which belong together.

    The labels measure only: whether the nearest other vector has the same one. What is learnt is the
    direction of the original's vectors, for labels of a few classes would pull apart what they do not know.
    """

    name: ClassVar[str] = "embedding"
    metric: ClassVar[Metric] = Metric("recall at 1", "%")
    trained_on_original: ClassVar[bool] = True

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """One whole number for each vector."""
        vectors = first_tensor(outputs)
        whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1
        if vectors.ndim != 2 or not whole:
            raise MintError(
                f"The network's output {tuple(vectors.shape)} does not fit the targets in {whose}, "
                f"{shapes_of(targets)}. embedding takes vectors (n, dimensions) and integers (n,)."
            )
        return ()

    def divergence(self, outputs: Any, taught: Any) -> Tensor:
        """1 - cosine of the vectors, the mean over the samples, and the distance of other outputs."""
        ours, theirs = (list(tensors_in(side)) for side in (outputs, taught))
        apart = 1 - functional.cosine_similarity(ours[0].float(), theirs[0].float(), 1).mean()
        if any(x.is_floating_point() for x in ours[1:]):
            apart = apart + output_distance(ours[1:], theirs[1:])
        return apart

    def meter(self) -> RetrievalMeter:
        """Keeps vectors and labels."""
        return RetrievalMeter()


class RetrievalMeter:
    """Share of the vectors whose nearest other one, by the cosine, has the same label."""

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Keep a batch."""
        self.vectors.append(functional.normalize(first_tensor(outputs).float(), dim=1))
        self.labels.append(targets)

    def compute(self) -> Measurement:
        """Vectors whose label no other has are not asked about."""
        vectors, labels = torch.cat(self.vectors), torch.cat(self.labels)
        _, numbers, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
        right = []
        for start in range(0, len(vectors), ROWS):
            cosines = vectors[start : start + ROWS] @ vectors.T
            rows = torch.arange(len(cosines), device=cosines.device)
            cosines[rows, start + rows] = -2.0  # not itself
            right.append(numbers[cosines.argmax(1)] == numbers[start : start + ROWS])
        asked = sizes[numbers] > 1
        if not bool(asked.any()):
            raise MintError("No two samples have the same label, so that nothing can be retrieved.")
        return Measurement(float(torch.cat(right)[asked].double().mean()))
