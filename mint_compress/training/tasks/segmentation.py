"""One class for each pixel: cross-entropy, and the mean intersection over union."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.reporting.records import Metric
from mint_compress.training.targets import is_binary
from mint_compress.training.tasks.classification import NONE_HAS_A_CLASS, Classification, ClassMeter, shares
from mint_compress.training.tasks.protocol import Measurement


@dataclass(frozen=True)
class Segmentation(Classification):
    """Label maps (n, H, W) for logits (n, classes, H, W); masks of 0 and 1, (n, 1, H, W) too, for one logit.

    Pixels that are 255 or -100 have no class. Of several outputs, as torchvision's networks have, the first
    map counts.
    """

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[Metric] = Metric("mIoU", "%")

    def _fits(self, output: Tensor, labels: Tensor) -> bool:
        # masks have the dimension of the one logit, label maps do not
        return output.is_floating_point() and output.ndim == 4 and output.shape[2:] == labels.shape[-2:]

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """See :class:`Classification`."""
        raw = self._raw(outputs)
        both = [None if t is None else as_maps(t, raw) for t in (targets, every)]
        return super().check(outputs, both[0], whose, both[1])

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy, the mean over the pixels that have a class."""
        return super().loss(outputs, as_maps(targets, self._raw(outputs)))

    def fitted(self, outputs: Any, targets: Tensor) -> Tensor:
        """See :class:`Classification`."""
        return super().fitted(outputs, as_maps(targets, self._raw(outputs)))

    def meter(self) -> OverlapMeter:
        """Counts where prediction and label overlap."""
        return OverlapMeter(self)


def as_maps(targets: Any, logits: Tensor) -> Any:
    """Masks of 0 and 1, of any type and with a dimension for the one logit, as label maps."""
    if not isinstance(targets, Tensor):
        return targets
    if is_binary(logits) and targets.ndim == logits.ndim and targets.shape[1] == 1:
        targets = targets[:, 0]
    whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    return targets.long() if whole else targets


class OverlapMeter(ClassMeter):
    """Intersection over union of every class, over all pixels of all samples."""

    def compute(self) -> Measurement:
        """What all batches come to; a class that is neither labelled nor predicted does not count."""
        if not int(self.labelled.sum()):
            raise MintError(NONE_HAS_A_CLASS.format(self.task.metric.name))
        overlap = shares(self.right, self.labelled + self.predicted - self.right)
        there = [share for share in overlap if share is not None]
        right = int(self.right.sum()) / int(self.labelled.sum())
        return Measurement(
            sum(there) / len(there), {"pixel accuracy": right}, overlap, tuple(self.labelled.tolist())
        )
