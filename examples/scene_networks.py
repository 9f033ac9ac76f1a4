"""Two small networks for scenes: a U-Net that segments them, and a detector with a feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from scenes import CLASSES, SIZE
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from mint_compress.training.tasks.detection import Detection
from mint_compress.training.tasks.segmentation import Segmentation


class Twice(nn.Sequential):
    """Two convolutions with batch normalisation, as on every level of a U-Net."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Logits (n, 11, H, W): the background and ten digits (Ronneberger et al., 2015, made small)."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = Twice(3, widths[0])
        self.down = nn.ModuleList(Twice(a, b) for a, b in pairs)
        self.wider = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(Twice(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], CLASSES + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for down in self.down:
            kept.append(down(functional.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for wider, up in zip(self.wider, self.up, strict=True):
            x = up(torch.cat([kept.pop(), wider(x)], 1))
        return self.head(x)


class DigitSegmentation(Segmentation):
    """Digits are 5 % of the pixels: the background weighs less, lest all be called background."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross-entropy."""
        weights = torch.ones(CLASSES + 1, device=outputs.device)
        weights[0] = 0.2
        return functional.cross_entropy(outputs, targets, weights)


STRIDES = (4, 8, 16)
REACH = ((0, 20), (20, 28), (28, 1000))
"""Longer sides of the boxes that each level answers for, in pixels."""


class Detector(nn.Module):
    """For every level: logits (n, 10, h, w), and distances (n, 4, h, w) to the sides of a box, in strides.

    Without anchors, as FCOS (Tian et al., 2019): the levels share one head.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 64, 96), pyramid: int = 48) -> None:
        super().__init__()
        self.stem = Twice(3, widths[0], 2)
        self.stages = nn.ModuleList(Twice(a, b, 2) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(width, pyramid, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(pyramid, pyramid, 3, 1, 1) for _ in widths[1:])
        self.tower = Twice(pyramid, pyramid)
        self.classes = nn.Conv2d(pyramid, CLASSES, 3, 1, 1)
        self.sides = nn.Conv2d(pyramid, 4, 3, 1, 1)
        nn.init.constant_(self.classes.bias, -4.0)  # few places have a digit

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        x, levels = self.stem(x), []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + functional.interpolate(levels[i + 1], scale_factor=2.0)
        towers = [self.tower(smooth(level)) for smooth, level in zip(self.smooth, levels, strict=True)]
        return [(self.classes(x), functional.softplus(self.sides(x))) for x in towers]


class DigitDetection(Detection):
    """Scores and boxes from the levels' maps, and the loss of FCOS without its centre-ness."""

    calls_with_targets = False

    def decode(self, outputs: Sequence[Sequence[Tensor]]) -> list[dict[str, Tensor]]:
        """At most 20 boxes an image, the overlapping ones of a class suppressed."""
        scores = torch.cat([logits.sigmoid().flatten(2) for logits, _ in outputs], 2)
        boxes = _all_boxes(outputs)
        found = []
        for each, where in zip(scores, boxes, strict=True):
            best, place = each.flatten().topk(60)
            labels, place = place // each.shape[1], place % each.shape[1]
            kept = batched_nms(where[place], best, labels, 0.5)[:20]
            found.append({"boxes": where[place][kept], "scores": best[kept], "labels": labels[kept]})
        return found

    def loss(self, outputs: Sequence[Sequence[Tensor]], targets: Sequence[Mapping[str, Any]]) -> Tensor:
        """Focal loss of the classes and generalised IoU loss of the boxes, over the places with a digit."""
        logits = torch.cat([x.flatten(2) for x, _ in outputs], 2).transpose(1, 2)
        boxes = _all_boxes(outputs)
        centres, level = _centres(outputs)
        wanted, where = torch.zeros_like(logits), torch.zeros_like(boxes)
        for i, target in enumerate(targets):
            for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
                mine = _responsible(box, centres, level)
                wanted[i, mine, label], where[i, mine] = 1.0, box
        there = wanted.sum(2) > 0
        count = there.sum().clamp_min(1)
        found = sigmoid_focal_loss(logits, wanted, reduction="sum") / count
        return found + generalized_box_iou_loss(boxes[there], where[there], reduction="sum") / count


def _all_boxes(outputs: Sequence[Sequence[Tensor]]) -> Tensor:
    """(n, places, 4) of all levels."""
    return torch.cat([_boxes(sides, stride) for (_, sides), stride in zip(outputs, STRIDES, strict=True)], 1)


def _boxes(sides: Tensor, stride: int) -> Tensor:
    """(n, h * w, 4) corners in pixels from (n, 4, h, w) distances in strides."""
    centres = _grid(sides, stride)
    left, top, right, bottom = (stride * sides).flatten(2).unbind(1)
    x, y = centres.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 2)


def _grid(maps: Tensor, stride: int) -> Tensor:
    """(h * w, 2) x and y of the places' centres in pixels."""
    y, x = (stride * (torch.arange(n, device=maps.device) + 0.5) for n in maps.shape[2:])
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], 1)


def _centres(outputs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    grids = [_grid(sides, stride) for (_, sides), stride in zip(outputs, STRIDES, strict=True)]
    level = torch.cat([torch.full((len(grid),), i, device=grid.device) for i, grid in enumerate(grids)])
    return torch.cat(grids), level


def _responsible(box: Tensor, centres: Tensor, level: Tensor) -> Tensor:
    """Places near a box's centre on the level for its size."""
    side = float((box[2:] - box[:2]).max())
    mine = next(i for i, (low, high) in enumerate(REACH) if low <= side < high)
    near = (centres - (box[:2] + box[2:]) / 2).abs().amax(1) < 0.8 * STRIDES[mine]
    return (level == mine) & near


SHAPE = (3, SIZE, SIZE)
