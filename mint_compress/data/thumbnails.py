"""A normalised image as a small picture that a page can hold."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor
from torch.nn import functional

from mint_compress.data.data import Stats

SIDE = 96
"""Pixels of the longer side, at most."""
CHANNELS = (1, 3)


def thumbnail(image: Tensor, mean: Stats, std: Stats) -> str | None:
    """A ``data:`` URI of a PNG; None for what is no grey or colour image.

    Parameters
    ----------
    image
        (C, H, W), normalised.
    mean, std
        What it was normalised with; None: what it holds is stretched from black to white.
    """
    if image.ndim != 3 or image.shape[0] not in CHANNELS:
        return None
    from PIL import Image

    pixels = image.detach().float().cpu()
    if mean is not None and std is not None:
        pixels = pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    else:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    longest = max(pixels.shape[1:])
    if longest > SIDE:
        size = [max(1, round(side * SIDE / longest)) for side in pixels.shape[1:]]
        pixels = functional.interpolate(pixels[None], size=size, mode="area")[0]
    shown = (255 * pixels).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
