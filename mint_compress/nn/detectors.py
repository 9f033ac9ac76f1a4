"""torchvision's detectors up to what their heads say: before boxes are decoded, sorted and suppressed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

TORCHVISION = "torchvision.models.detection"
DETECTORS = {"ssd": "SSD", "retinanet": "RetinaNet", "fcos": "FCOS", "generalized_rcnn": "GeneralizedRCNN"}
"""Module -> class."""
REGIONS = (
    (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0),
    (0.5, 0.5, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75), (0.1, 0.2, 0.3, 0.5), (0.6, 0.6, 0.9, 0.8),
)  # fmt: skip
"""Shares of an image: x1, y1, x2, y2."""


def is_detector(model: nn.Module) -> bool:
    """Whether it is one of torchvision's detectors, of which :class:`RawHeads` can be made."""
    kinds = {(base.__module__, base.__name__) for base in type(model).__mro__}
    return any((f"{TORCHVISION}.{module}", name) in kinds for module, name in DETECTORS.items())


class RawHeads(nn.Module):
    """What can be exported of a detector, with which it has its layers in common.

    It takes images (n, 3, H, W) as the detector does, between 0 and 1, at the size at which they are to be
    looked at: it normalises them and does not resize. Detectors in one stage give their ``cls_logits`` and
    ``bbox_regression``, as in training; those in two stages the ``features`` of the pyramid, and for each of
    its levels ``objectness`` and ``deltas``, of which proposals are made.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        own: Any = detector
        self.backbone = own.backbone
        self.transform = _Normalisation(own.transform)
        if has_stages(detector):
            self.rpn = nn.Module()  # without anchors and what becomes of them
            self.rpn.head = own.rpn.head
        else:
            self.head = own.head

    def forward(self, images: Tensor) -> dict[str, Any]:
        """A dict of tensors, or of tensors by level."""
        pyramid = _pyramid(self, images)
        return ({"features": [*pyramid.values()]} if has_stages(self) else {}) | _raw(self, pyramid)


class _Normalisation(nn.Module):
    """What a detector does to images, without resizing."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.image_mean, self.image_std = transform.image_mean, transform.image_std


def has_stages(detector: nn.Module) -> bool:
    """Whether it first makes proposals, and then looks at these regions."""
    return hasattr(detector, "rpn")


def say_raw_outputs_(detector: nn.Module) -> None:
    """Let a detector give what its heads say, those for regions included, of the same few regions always.

    Which boxes are left in the end is decided by thresholds and by the order of scores, so that an untrained
    detector gives none at all, and rounding may change them all. What its heads say follows from its layers.

    Parameters
    ----------
    detector
        A copy, for analysis alone, as a network of any other kind, which stays as it is.
    """
    if is_detector(detector):
        vars(detector)["forward"] = MethodType(everything_raw, detector)


def everything_raw(detector: nn.Module, images: Tensor) -> dict[str, Any]:
    """What the heads of a detector say of images (n, 3, H, W), and of `REGIONS` of each."""
    pyramid = _pyramid(detector, images)
    raw = _raw(detector, pyramid)
    if not has_stages(detector):
        return raw
    height, width = (int(size) for size in images.shape[2:])
    heads: Any = detector.roi_heads
    regions = images.new_tensor(REGIONS) * images.new_tensor([width, height, width, height])
    proposals, sizes = [regions] * len(images), [(height, width)] * len(images)
    for kind in ("box", "mask", "keypoint"):
        if (pool := getattr(heads, f"{kind}_roi_pool", None)) is not None:
            seen = getattr(heads, f"{kind}_head")(pool(pyramid, proposals, sizes))
            raw[kind] = getattr(heads, f"{kind}_predictor")(seen)
    return raw


def _pyramid(detector: Any, images: Tensor) -> Mapping[str, Tensor]:
    transform = detector.transform
    mean, std = (images.new_tensor(x)[:, None, None] for x in (transform.image_mean, transform.image_std))
    found = detector.backbone((images - mean) / std)
    return {"0": found} if isinstance(found, Tensor) else found


def _raw(detector: Any, pyramid: Mapping[str, Tensor]) -> dict[str, Any]:
    features = list(pyramid.values())
    if not has_stages(detector):
        return dict(detector.head(features))
    objectness, deltas = detector.rpn.head(features)
    return {"objectness": objectness, "deltas": deltas}
