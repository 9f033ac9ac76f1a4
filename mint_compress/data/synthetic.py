"""Images for want of real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def synthetic_images(count: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Gaussian images whose amplitude falls as 1/f, as it does in photographs, for want of real ones.

    Parameters
    ----------
    count
        Images to draw.
    shape
        (C, H, W); in a shape without two spatial axes the values are independent.
    seed
        The same seed draws the same images.

    Returns
    -------
    Tensor
        (count, C, H, W) float32; each channel has zero mean and unit variance over all images and
        pixels, like normalised photographs, whose brightness differs between images too.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *shape, generator=generator)
    if len(shape) == 3:
        height, width = shape[1:]
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        frequency = torch.hypot(fy, fx)
        # the constant term (brightness) is as strong as the slowest wave
        frequency[0, 0] = 1 / max(height, width)
        images = torch.fft.irfft2(torch.fft.rfft2(images) / frequency, s=(height, width))
    axes = [0, *range(2, images.ndim)]
    images = images - images.mean(axes, keepdim=True)
    return images / images.std(axes, correction=0, keepdim=True).clamp_min(1e-12)
