"""Small detectors of torchvision's classes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

SIZE = 64
"""Height and width at which they look at images."""


class Pyramid(nn.Module):
    """Two levels of one width, the first half as large as the image."""

    out_channels = 12

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), FrozenBatchNorm2d(16)
        self.down = nn.Conv2d(16, 20, 3, 2, 1)
        self.fine, self.coarse = nn.Conv2d(16, 12, 1), nn.Conv2d(20, 12, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.norm(self.stem(x)).relu()
        return OrderedDict([("0", self.fine(x)), ("1", self.coarse(self.down(x).relu()))])


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(sizes=((16,), (32,)), aspect_ratios=((1.0,),) * 2)


def in_two_stages() -> MaskRCNN:
    """With heads for boxes and for masks."""
    torch.manual_seed(0)
    pools = (MultiScaleRoIAlign(["0", "1"], size, 2, canonical_scale=16) for size in (3, 4))
    box, mask = pools
    return MaskRCNN(
        Pyramid(), min_size=SIZE, max_size=SIZE, rpn_anchor_generator=_anchors(), box_roi_pool=box,
        mask_roi_pool=mask, box_head=_BoxHead(), box_predictor=_BoxPredictor(),
        mask_head=nn.Sequential(nn.Conv2d(12, 10, 3, 1, 1), nn.ReLU()),
        mask_predictor=nn.ConvTranspose2d(10, 3, 2, 2),
    ).eval()  # fmt: skip


class _BoxHead(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12 * 9, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())


class _BoxPredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(24, 3), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


def in_one_stage() -> RetinaNet:
    """Whose heads are shared over the levels."""
    torch.manual_seed(0)
    return RetinaNet(Pyramid(), 3, min_size=SIZE, max_size=SIZE, anchor_generator=_anchors()).eval()
