"""Networks of kinds that torchvision has not, at the size that people use, for `whole_command.py`."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Logits (n, 2, H, W) of images (n, 3, H, W) (Ronneberger et al., 2015)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = twice(3, widths[0])
        self.down = nn.ModuleList(twice(a, b) for a, b in pairs)
        self.wider = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(twice(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for down in self.down:
            kept.append(down(F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for wider, up in zip(self.wider, self.up, strict=True):
            x = up(torch.cat([kept.pop(), wider(x)], 1))
        return self.head(x)


def unet() -> nn.Module:
    """14 million parameters."""
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
