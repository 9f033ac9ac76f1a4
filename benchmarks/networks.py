"""Networks of kinds that torchvision has not, at the size that people use, for `whole_command.py`."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from scene_networks import UNet


def unet() -> nn.Module:
    """14.7 million parameters; images (n, 3, H, W)."""
    return UNet((44, 88, 176, 352, 704))


class Crepe(nn.Module):
    """360 logits of pitch of frames (n, 1024) of sound, in the smallest of the sizes of Kim et al. (2018)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, (64 if i else 512, 1), (1 if i else 4, 1))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.pad(x, (0, 0, 31, 32) if i else (0, 0, 254, 254))
            x = F.max_pool2d(norm(convolution(x).relu()), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


def crepe() -> nn.Module:
    """0.5 million parameters, the first kernel 512 samples long."""
    return Crepe()
