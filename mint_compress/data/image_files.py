"""One image file as pixels: upright, grey or in colour, resized and cut out of the middle."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

WHITE = 65535
"""Of an image of 16 bits, in the formats that say so: PNG and PPM."""


class UnreadableImage(Exception):
    """Why a file gives no image. The message does not name the file."""


def read_pixels(path: str, shape: Sequence[int]) -> Tensor:
    """The pixels of an image file, (C, H, W) uint8.

    An image that has the wanted size is taken as it is; any other is resized so that its shorter side
    (relative to the wanted shape) is 8/7 of it, 256 for 224, and cut out of the middle.

    Parameters
    ----------
    path
        Of a file that PIL reads.
    shape
        (C, H, W); C is 1 (read as grey) or 3.

    Raises
    ------
    UnreadableImage
        No image, a broken one, or one whose white is not known.
    """
    from torchvision.transforms.v2 import functional

    channels, height, width = shape
    image = _opened(path, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = max(height / image.height, width / image.width) * 8 / 7
        size = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        image = functional.center_crop(functional.resize(image, size), [height, width])
    pixels: Tensor = functional.pil_to_tensor(image)
    return pixels


def _opened(path: str, mode: str) -> Image.Image:
    """An image file read by PIL as grey (``L``) or in colour (``RGB``)."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            if file.mode[0] not in "IF":
                return _upright(file).convert(mode)
            if file.format in ("PNG", "PPM"):
                return Image.fromarray(_eight_bits(_upright(file))).convert(mode)
            said = f"more than 8 bits a pixel ({file.format}, {file.mode}), so that white is not known"
    except Exception as error:  # whatever PIL raises at a file that may hold anything
        raise UnreadableImage(_reason(error, path)) from None
    raise UnreadableImage(said)


def _upright(file: Image.Image) -> Image.Image:
    """The image of an open file turned as its EXIF data says, if that can be read, and without a palette."""
    from PIL import ImageOps

    file.load()
    with suppress(Exception):  # whatever PIL raises at broken EXIF data: the pixels are there
        ImageOps.exif_transpose(file, in_place=True)
    # the colours stay the same, and PIL has nothing to warn of; how transparent they are is left out
    return file.convert("RGBA") if isinstance(file.info.get("transparency"), bytes) else file


def _eight_bits(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The nearest of 256 greys; PIL's own conversion would clip to 255, to white."""
    values = np.asarray(image).astype(np.int64)
    return ((values * 255 + WHITE // 2) // WHITE).clip(0, 255).astype(np.uint8)


def _reason(error: Exception, path: str) -> str:
    """What PIL says, in one line and without the name of the file."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(said.replace(repr(path), "").split())
