"""Boxes: torchvision's convention for detectors, and COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, run
from mint_compress.reporting.records import Metric
from mint_compress.training.tasks.protocol import Measurement, Task

FOUND = ("boxes", "labels", "scores")
WANTED = ("boxes", "labels")


@dataclass(frozen=True)
class Detection(Task):
    """Dicts of ``boxes`` (k, 4) as x1, y1, x2, y2 in pixels, and ``labels`` (k,), one dict an image.

    As torchvision's detectors do it, a network in training mode is given images and targets and returns a
    dict of losses; in evaluation it returns a dict an image, with ``scores`` (k,) besides. A network that
    returns tensors takes a subclass with :meth:`decode` and :meth:`loss`, and ``calls_with_targets`` False.
    """

    name: ClassVar[str] = "detection"
    metric: ClassVar[Metric] = Metric("mAP", "%")
    calls_with_targets: ClassVar[bool] = True

    @property
    def distils(self) -> bool:  # type: ignore[override]
        """Only tensors can be compared with a teacher's: boxes that were found cannot."""
        return not self.calls_with_targets

    def decode(self, outputs: Any) -> Sequence[Mapping[str, Tensor]]:
        """What was found in each image, from what the network returned in evaluation."""
        return outputs  # type: ignore[no-any-return]

    def check(self, outputs: Any, targets: Any, whose: str, every: Any = None) -> tuple[str, ...]:
        """Every image must have its dict."""
        if not _are_dicts(targets, WANTED):
            raise MintError(
                f"{whose.capitalize()} has targets that are {shapes_of(targets)}. detection takes a list of "
                "dicts (boxes, labels), one an image."
            )
        found = self.decode(outputs)
        if not _are_dicts(found, FOUND):
            raise MintError(
                f"The network returns {shapes_of(found)}. detection takes a list of dicts (boxes, labels, "
                "scores); for another output give --task package.module:object with its decode()."
            )
        return ()

    def forward(self, model: nn.Module, inputs: Inputs, targets: Any) -> Any:
        """Torchvision's detectors take a list of images, and compute their losses themselves."""
        if not self.calls_with_targets:
            return run(model, inputs)
        return run(model, (list(inputs), list(targets)))

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the losses that the network returned."""
        if not isinstance(outputs, Mapping):
            raise MintError(
                f"In training the network returns {shapes_of(outputs)}, not a dict of losses as those of "
                "torchvision do. Give --loss, or --task package.module:object."
            )
        return torch.stack([loss for loss in outputs.values()]).sum()

    def meter(self) -> BoxMeter:
        """COCO's, by torchmetrics."""
        return BoxMeter(self)


def _are_dicts(found: Any, keys: Sequence[str]) -> bool:
    return isinstance(found, list | tuple) and all(
        isinstance(one, Mapping) and all(isinstance(one.get(key), Tensor) for key in keys) for one in found
    )


class BoxMeter:
    """Average precision at intersections over union of .50, .55, ... .95, the mean over the classes."""

    def __init__(self, task: Detection) -> None:
        try:
            from torchmetrics.detection import MeanAveragePrecision

            self.precision = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
        except ImportError:  # torchmetrics', for want of pycocotools or faster_coco_eval
            raise MintError(
                "Average precision of boxes needs pycocotools. pip install 'mint-compress[detection]'"
            ) from None
        self.task = task
        self.count: dict[int, int] = {}

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        found = [{key: one[key].detach().cpu() for key in FOUND} for one in self.task.decode(outputs)]
        wanted = [{key: one[key].cpu() for key in WANTED} for one in targets]
        self.precision.update(found, wanted)
        for one in wanted:
            for label in one["labels"].flatten().tolist():
                self.count[label] = self.count.get(label, 0) + 1

    def compute(self) -> Measurement:
        """What all batches come to; -1, COCO's word for a class without boxes, is None."""
        if not self.count:
            raise MintError("There is no box to measure mAP on. Check the targets.")
        found = self.precision.compute()
        each = dict(zip(_list(found["classes"]), _list(found["map_per_class"]), strict=True))
        classes = range(int(max(*each, *self.count, 0)) + 1)
        return Measurement(
            float(found["map"]),
            {"mAP50": float(found["map_50"])},
            tuple(each[c] if c in self.count else None for c in classes),
            tuple(self.count.get(c, 0) for c in classes),
        )


def _list(values: Tensor) -> list[Any]:
    return values.reshape(-1).tolist()
