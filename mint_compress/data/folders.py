"""Image files, opened when they are asked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_compress.data.datasets import ImageDataset, normalised
from mint_compress.errors import MintError, our_own

if TYPE_CHECKING:
    from PIL import Image


class FolderDataset(ImageDataset):
    """Image files, opened when they are asked for, several at a time.

    An image that has the wanted size is taken as it is; any other is resized so that its shorter side
    (relative to the wanted shape) is 8/7 of it, 256 for 224, and cut out of the middle.

    Parameters
    ----------
    files
        (path, label) of every image; the label is None where there are none.
    shape
        (C, H, W); C is 1 (read as grey) or 3.
    mean, std
        As for `ArrayDataset`.
    """

    prefetch = True

    def __init__(
        self,
        files: Sequence[tuple[str, int | None]],
        *,
        shape: tuple[int, ...],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.files = list(files)
        labels = [label for _, label in self.files if label is not None]
        self.labels = torch.tensor(labels, dtype=torch.int64) if labels else None
        self.shape = shape
        self.mean, self.std = mean, std

    def subset(self, rows: Tensor) -> FolderDataset:
        files = [self.files[i] for i in rows.tolist()]
        return FolderDataset(files, shape=self.shape, mean=self.mean, std=self.std)

    def __len__(self) -> int:
        return len(self.files)

    def gather(
        self, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        paths = [self.files[i][0] for i in indices.tolist()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = torch.stack(list(pool.map(self._open, paths)))
        labels = None if self.labels is None else self.labels[indices]
        return normalised(images.float() / 255, self.mean, self.std), labels

    def _open(self, path: str) -> Tensor:
        from torchvision.transforms import functional

        channels, height, width = self.shape
        image = _converted(path, "L" if channels == 1 else "RGB")
        if image.size != (width, height):
            scale = max(height / image.height, width / image.width) * 8 / 7
            size = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
            image = functional.center_crop(functional.resize(image, size), [height, width])
        pixels: Tensor = functional.pil_to_tensor(image)
        return pixels


def _converted(path: str, mode: str) -> Image.Image:
    """An image file, upright as its EXIF data says, read by PIL as grey (``L``) or in colour (``RGB``)."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            kept = file.mode[0] not in "IF"
            image = _upright(file).convert(mode) if kept else file
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's
        raise MintError(f"Cannot read the image {path} ({error}). Remove or replace it.") from None
    if not kept:  # PIL would clip them to 0..255, to white
        raise MintError(f"{path} has more than 8 bits a pixel ({image.mode}). Convert it first.")
    return image


def _upright(file: Image.Image) -> Image.Image:
    """The image of an open file turned as its EXIF data says, if that can be read, and without a palette."""
    from PIL import ImageOps

    file.load()
    with suppress(Exception):  # whatever PIL raises at broken EXIF data: the pixels are there
        ImageOps.exif_transpose(file, in_place=True)
    # the colours stay the same, and PIL has nothing to warn of; how transparent they are is left out
    return file.convert("RGBA") if isinstance(file.info.get("transparency"), bytes) else file


def image_files(folder: Path) -> tuple[list[tuple[str, int]], list[str], Counter[str]]:
    """The images in a folder of class folders.

    Returns
    -------
    files
        (path, label) of every image that PIL reads here, sorted.
    classes
        The class names in order.
    passed_over
        How many other files there are, by the endings of their names; hidden files do not count.

    Raises
    ------
    MintError
        No class folders, or one without images.
    """
    from torchvision.datasets import ImageFolder

    endings = _image_endings()
    passed_over: Counter[str] = Counter()

    @our_own()
    def is_image(path: str) -> bool:
        ending = Path(path).suffix.lower()
        if ending not in endings and not Path(path).name.startswith("."):
            passed_over[ending or "no ending"] += 1
        return ending in endings

    try:
        found = ImageFolder(str(folder), is_valid_file=is_image)
    except OSError as error:  # torchvision's, FileNotFoundError among them
        reason = " ".join(str(error).split())
        others = f" Passed over: {endings_text(passed_over)}." if passed_over else ""
        raise MintError(f"{folder} is no folder of class folders with images: {reason}{others}") from None
    return found.samples, found.classes, passed_over


def unlabelled_files(folder: Path) -> tuple[list[tuple[str, None]], Counter[str]]:
    """All images below a folder, at any depth, sorted; and how many other files there are, by their endings.

    Hidden files and folders do not count.

    Raises
    ------
    MintError
        There is no image.
    """
    endings = _image_endings()
    passed_over: Counter[str] = Counter()
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if path.suffix.lower() in endings:
            found.append((str(path), None))
        else:
            passed_over[path.suffix.lower() or "no ending"] += 1
    if not found:
        others = f": passed over were {endings_text(passed_over)}" if passed_over else ""
        raise MintError(f"{folder} has no images{others}. Name a folder that has some, at any depth.")
    return found, passed_over


def endings_text(passed_over: Counter[str]) -> str:
    """For a person: ``.heic 12, .txt 1``, the most frequent endings first."""
    return ", ".join(f"{ending} {count:,}" for ending, count in passed_over.most_common(5))


def _image_endings() -> frozenset[str]:
    """What torchvision takes for an image, and two kinds besides; each where PIL reads it on this machine."""
    from PIL import Image
    from torchvision.datasets.folder import IMG_EXTENSIONS

    # also loads what PIL reads
    known = Image.registered_extensions()
    return frozenset(e for e in (*IMG_EXTENSIONS, ".gif", ".avif") if known.get(e) in Image.OPEN)
