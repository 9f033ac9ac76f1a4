"""Labelled images that are fetched a batch at a time: from arrays, from folders, with augmentation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from mint_compress.errors import MintError, our_own
from mint_compress.nn.io import Inputs, of_batch, tensors

if TYPE_CHECKING:
    from PIL import Image

Source = Dataset[Any] | Iterable[Any]
"""A dataset of (image, label), or an iterable of (images, labels) batches such as a DataLoader.

In the place of the image there may be a tuple of tensors, or a dict.
"""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with integer labels; subclasses say how the rows behind some indices are fetched.

    Attributes
    ----------
    labels
        (n,) int64, known without opening any image.
    prefetch
        Whether fetching is slow enough that `batches` should fetch one batch ahead.
    """

    labels: Tensor
    prefetch = False

    def gather(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images (b, C, H, W) float32 and labels (b,) int64 of ``indices``.

        ``generator`` is what augmentation draws from; datasets without augmentation ignore it.
        """
        raise NotImplementedError

    def subset(self, rows: Tensor) -> ImageDataset:
        """The images at ``rows``, in that order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.gather(torch.tensor([index]))
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        images, labels = self.gather(torch.as_tensor(indices))
        return list(zip(images, labels.tolist(), strict=True))


class ArrayDataset(ImageDataset):
    """Images held in memory as they came: uint8 stays uint8 until a batch is asked for.

    Parameters
    ----------
    images
        (n, C, H, W), (n, D), or with other dimensions after the channels; uint8 or float32. uint8 is
        divided by 255.
    labels
        (n,) int64.
    rows
        Which rows of ``images`` and ``labels`` this dataset shows; all of them by default. Splits
        share one array that way.
    mean, std
        Per channel, subtracted and divided by; None leaves the values as they are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        rows: Tensor | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.images = images
        self.rows = torch.arange(len(labels)) if rows is None else rows
        self.all_labels = labels
        self.labels = labels[self.rows]
        self.mean, self.std = mean, std

    def subset(self, rows: Tensor) -> ArrayDataset:
        return ArrayDataset(self.images, self.all_labels, rows=self.rows[rows], mean=self.mean, std=self.std)

    def gather(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        images = self.images[self.rows[indices]]
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return _normalise(images, self.mean, self.std), self.labels[indices]


def _normalise(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    def channelwise(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(-1, *[1] * (images.ndim - 2))

    images = images if mean is None else images - channelwise(mean)
    return images if std is None else images / channelwise(std)


class FolderDataset(ImageDataset):
    """Image files, opened when they are asked for, several at a time.

    An image that has the wanted size is taken as it is; any other is resized so that its shorter side
    (relative to the wanted shape) is 8/7 of it, 256 for 224, and cut out of the middle.

    Parameters
    ----------
    files
        (path, label) of every image.
    shape
        (C, H, W); C is 1 (read as grey) or 3.
    mean, std
        As for `ArrayDataset`.
    """

    prefetch = True

    def __init__(
        self,
        files: Sequence[tuple[str, int]],
        *,
        shape: tuple[int, ...],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.files = list(files)
        self.labels = torch.tensor([label for _, label in self.files], dtype=torch.int64)
        self.shape = shape
        self.mean, self.std = mean, std

    def subset(self, rows: Tensor) -> FolderDataset:
        files = [self.files[i] for i in rows.tolist()]
        return FolderDataset(files, shape=self.shape, mean=self.mean, std=self.std)

    def gather(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        paths = [self.files[i][0] for i in indices.tolist()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = torch.stack(list(pool.map(self._open, paths)))
        return _normalise(images.float() / 255, self.mean, self.std), self.labels[indices]

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


class Augmented(ImageDataset):
    """Another dataset, every image flipped left to right by chance and cut out of a padded copy.

    Parameters
    ----------
    dataset
        Gives normalised images (C, H, W), so that padding with 0 is padding with the mean.
    padding
        Pixels on each side; the window moves by up to that much.
    seed
        For indices fetched without a generator; `batches` passes its own.
    """

    def __init__(self, dataset: ImageDataset, *, padding: int, seed: int = 0) -> None:
        self.dataset = dataset
        self.padding = padding
        self.seed = seed
        self.labels = dataset.labels
        self.prefetch = dataset.prefetch
        self.generator = torch.Generator().manual_seed(seed)

    def subset(self, rows: Tensor) -> Augmented:
        return Augmented(self.dataset.subset(rows), padding=self.padding, seed=self.seed)

    def gather(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        images, labels = self.dataset.gather(indices)
        return flip_and_crop(images, padding=self.padding, generator=generator or self.generator), labels


def flip_and_crop(
    images: Tensor,
    *,
    padding: int,
    generator: torch.Generator | None,
    flip: bool = True,
    background: float = 0.0,
) -> Tensor:
    """Shift each of ``images`` (b, C, H, W) by up to ``padding`` pixels, and mirror about half of them.

    Parameters
    ----------
    generator
        On the CPU, wherever the images are.
    background
        What the images are padded with.
    """
    count, _, height, width = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, [padding] * 4, value=background)
    top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(device)
    rows = top + torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    if flip:
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(device)
        across = torch.where(mirrored, across.flip(0), across)
    columns = left + across
    each = torch.arange(count, device=device)[:, None, None]
    # indices that are apart put their axes first: (count, height, width, channels)
    picked = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def batches(
    source: Source, batch_size: int, *, generator: torch.Generator | None = None
) -> Iterator[tuple[Inputs, Tensor]]:
    """Go once through ``source`` and yield (images, labels), the last batch perhaps smaller.

    Parameters
    ----------
    source
        A dataset of (image, label), or an iterable that yields (images, labels) batches, whose own
        order and batch size then hold.
    batch_size
        Images per batch of a dataset.
    generator
        Given, a dataset comes in shuffled order and its augmentation draws from here too.

    Raises
    ------
    MintError
        When an iterable yields something else than pairs of inputs and labels, one label a sample.
    """
    if isinstance(source, ImageDataset):
        chunks = _chunks(len(source), batch_size, generator)
        yield from _fetched(lambda rows: source.gather(rows, generator), chunks, ahead=source.prefetch)
    elif isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        for rows in _chunks(len(source), batch_size, generator):  # type: ignore[arg-type]
            yield _pair(_collate([source[i] for i in rows.tolist()]))
    elif isinstance(source, IterableDataset):
        yield from map(_pair, DataLoader(source, batch_size=batch_size))
    else:
        yield from map(_pair, source)


def _chunks(count: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return [order[start : start + size] for start in range(0, count, size)]


def _fetched(
    fetch: Callable[[Tensor], tuple[Tensor, Tensor]], chunks: Sequence[Tensor], *, ahead: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    if not ahead:
        yield from map(fetch, chunks)
        return
    # one worker, so that what augmentation draws stays in the order of the batches
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for chunk in chunks:
            ready, waiting = waiting, pool.submit(fetch, chunk)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()


def _collate(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:  # PyTorch's, at items of other types or unequal shapes
        reason = " ".join(str(error).split())
        raise MintError(f"The dataset's items do not make a batch ({reason}). Give (tensor, int).") from None


def _pair(batch: Any) -> tuple[Inputs, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        inputs, labels = of_batch(batch), batch[1]
        if _are_tensors(inputs):
            _check_counts(*tensors(inputs), labels)
            return inputs, labels
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    shown = type(batch).__name__ + size
    raise MintError(
        f"The loader gives a {shown} per batch. It must give (inputs, labels), two tensors; "
        "several inputs are a tuple or a dict of tensors."
    )


def _are_tensors(inputs: Any) -> bool:
    values = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    if isinstance(values, tuple):
        return len(values) > 0 and all(isinstance(x, Tensor) for x in values)
    return isinstance(values, Tensor)


def _check_counts(*together: Tensor) -> None:
    if len({x.shape[:1] for x in together}) > 1 or not together[0].ndim:
        shapes = ", ".join(str(tuple(x.shape)) for x in together)
        raise MintError(
            f"The loader gives inputs and labels of shapes {shapes} in one batch. "
            "Each must have as many samples as the others, along its first dimension."
        )


def batch_count(source: Source, batch_size: int) -> int:
    """How many batches `batches` yields for ``source``.

    Raises
    ------
    MintError
        When an iterable has no length.
    """
    try:
        size = len(source)  # type: ignore[arg-type]
    except TypeError:  # of an iterable without __len__, and of PyTorch's IterableDataset
        raise MintError("The loader has no length (len() fails). Give a DataLoader over a dataset.") from None
    return -(-size // batch_size) if isinstance(source, Dataset) else size


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
