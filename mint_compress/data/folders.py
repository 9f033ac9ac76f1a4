"""Image files, opened when they are asked for."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mint_compress.data.datasets import Batches, ImageDataset, normalise_
from mint_compress.data.image_reader import ImageReader
from mint_compress.errors import MintError, our_own
from mint_compress.processes import Share

log = logging.getLogger(__name__)

UNREADABLE = 0.01
"""Share of the images of a split that may be broken, though one always may. What is measured without more of
them would be about other images."""
NAMED = 3
"""Broken files that are named, of many."""


class FolderDataset(ImageDataset):
    """Image files, opened when they are asked for; see :func:`mint_compress.data.image_files.read_pixels`.

    A file that cannot be read is left out wherever it is met, with a warning; too many are an error.

    Parameters
    ----------
    files
        (path, label) of every image; the label is None where there are none.
    shape
        (C, H, W); C is 1 (read as grey) or 3.
    mean, std
        As for `ArrayDataset`.
    workers
        Processes that read; as for :class:`mint_compress.data.image_reader.ImageReader`.
    """

    prefetch = True

    def __init__(
        self,
        files: Sequence[tuple[str, int | None]],
        *,
        shape: tuple[int, ...],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        workers: int | None = None,
    ) -> None:
        labels = [label for _, label in files if label is not None]
        self._show(
            ImageReader((path for path, _ in files), shape, workers),
            torch.arange(len(files)),
            torch.tensor(labels, dtype=torch.int64) if labels else None,
        )
        self.shape = shape
        self.mean, self.std = mean, std

    def _show(self, reader: ImageReader, rows: Tensor, labels: Tensor | None) -> None:
        self.reader, self.rows, self.labels = reader, rows, labels
        self._unreadable: dict[int, str] = {}

    def subset(self, rows: Tensor) -> FolderDataset:
        part = copy.copy(self)
        part._show(self.reader, self.rows[rows], None if self.labels is None else self.labels[rows])
        return part

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> str:
        """Of one image's file."""
        return self.reader.files.paths[int(self.rows[index])]

    @property
    def unreadable(self) -> Mapping[str, str]:
        return {self.path(index): reason for index, reason in sorted(self._unreadable.items())}

    def gather(
        self, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        [batch] = self.gathered([indices])
        return batch

    def gathered(
        self,
        chunks: Sequence[Tensor],
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Batches:
        if share is not None:
            chunks = [chunk[list(share.of(len(chunk)))] for chunk in chunks]
        at_once = self.reader.at_once
        read = self.reader.read(self.rows[piece] for chunk in chunks for piece in chunk.split(at_once))
        for chunk in chunks:
            images, kept = torch.empty(len(chunk), *self.shape), torch.ones(len(chunk), dtype=torch.bool)
            done = filled = 0
            for piece, (pixels, unreadable) in zip(chunk.split(at_once), read, strict=False):
                self._leave_out({int(piece[i]): reason for i, reason in unreadable.items()})
                kept[[done + i for i in unreadable]] = False
                if len(pixels):
                    part = images[filled : filled + len(pixels)].copy_(pixels).div_(255)
                    normalise_(part, self.mean, self.std)
                done, filled = done + len(piece), filled + len(pixels)
            yield images[:filled], None if self.labels is None else self.labels[chunk[kept]]

    def _leave_out(self, found: Mapping[int, str]) -> None:
        """Remember why images could not be read, and say so of the first."""
        for index, reason in found.items():
            if index not in self._unreadable and len(self._unreadable) < NAMED:
                log.warning("left out, as it cannot be read: %s (%s)", self.path(index), reason)
            self._unreadable[index] = reason
        if len(self._unreadable) > max(1, UNREADABLE * len(self)):
            raise MintError(
                f"Of {len(self):,} images at least {named(self.unreadable)} cannot be read, more than "
                f"{UNREADABLE:.0%}. Remove or replace them: figures without them would be about other images."
            )


def named(unreadable: Mapping[str, str]) -> str:
    """For a person: ``2 (a.jpg: cannot identify image file; b.jpg: image file is truncated)``."""
    first = "; ".join(f"{path}: {reason}" for path, reason in list(unreadable.items())[:NAMED])
    more = "; ..." if len(unreadable) > NAMED else ""
    return f"{len(unreadable):,} ({first}{more})"


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
