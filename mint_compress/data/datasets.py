"""Images that are fetched a batch at a time, with or without targets."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mint_compress.errors import MintError
from mint_compress.processes import Share

Source = Dataset[Any] | Iterable[Any]
"""A dataset of (image, target), or an iterable of (images, targets) batches such as a DataLoader; or of
images alone.

In the place of the image there may be a tuple of tensors, or a dict.
"""

Batches = Generator[tuple[Tensor, Tensor | None], None, None]
"""Images with their targets, if there are any, a batch at a time."""


class ImageDataset(Dataset[Any]):
    """Images, with or without targets; subclasses say how the rows behind some indices are fetched.

    Attributes
    ----------
    labels
        (n,) int64 class numbers, or other targets (n, ...), known without opening any image; None without.
    prefetch
        Whether fetching is slow enough that `batches` should fetch one batch ahead.
    """

    labels: Tensor | None
    prefetch = False

    def gather(
        self, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised images (b, C, H, W) float32 and targets (b, ...), or None, of ``indices``.

        ``generator`` is what augmentation draws from; datasets without augmentation ignore it. Images that
        cannot be read are left out.
        """
        raise NotImplementedError

    def gathered(
        self,
        chunks: Sequence[Tensor],
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Batches:
        """What :meth:`gather` gives for each of the chunks, or a share of it, one after the other."""
        for indices in chunks:
            yield self.gather(indices, generator) if share is None else self._part(indices, generator, share)

    def _part(
        self, indices: Tensor, generator: torch.Generator | None, share: Share
    ) -> tuple[Tensor, Tensor | None]:
        """A share of the images, augmented as they are when one process takes all."""
        mine = list(share.of(len(indices)))
        before = None if generator is None else generator.get_state()
        part = self.gather(indices[mine], generator)
        if generator is None or before is None or torch.equal(before, generator.get_state()):
            return part
        generator.set_state(before)  # it augments in a way of its own, which goes by the whole batch
        images, targets = self.gather(indices, generator)
        return images[mine], None if targets is None else targets[mine]

    @property
    def unreadable(self) -> Mapping[str, str]:
        """File -> why it gives no image, of those that were left out so far."""
        return {}

    def subset(self, rows: Tensor) -> ImageDataset:
        """The images at ``rows``, in that order."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        images, labels = self.gather(torch.as_tensor(indices))
        if len(images) < len(indices):
            first = next(f"{path}: {reason}" for path, reason in self.unreadable.items())
            raise MintError(f"There are images that cannot be read ({first}). Remove or replace them.")
        if labels is None:
            return list(images)
        return list(zip(images, labels.tolist() if are_classes(labels) else labels, strict=True))


def are_classes(labels: Tensor | None) -> TypeGuard[Tensor]:
    """Whether these are class numbers, one a sample."""
    return labels is not None and labels.ndim == 1 and labels.dtype == torch.int64


class ArrayDataset(ImageDataset):
    """Images held in memory as they came: uint8 stays uint8 until a batch is asked for.

    Parameters
    ----------
    images
        (n, C, H, W), (n, D), or with other dimensions after the channels; uint8 or float32. uint8 is
        divided by 255.
    labels
        (n,) int64, or other targets (n, ...); None without.
    rows
        Which rows of ``images`` and ``labels`` this dataset shows; all of them by default. Splits
        share one array that way.
    mean, std
        Per channel, subtracted and divided by; None leaves the values as they are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        *,
        rows: Tensor | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.images = images
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.all_labels = labels
        self.labels = None if labels is None else labels[self.rows]
        self.mean, self.std = mean, std

    def subset(self, rows: Tensor) -> ArrayDataset:
        return ArrayDataset(self.images, self.all_labels, rows=self.rows[rows], mean=self.mean, std=self.std)

    def __len__(self) -> int:
        return len(self.rows)

    def gather(
        self, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        images = self.images[self.rows[indices]]  # a copy
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        return normalise_(images, self.mean, self.std), None if self.labels is None else self.labels[indices]


def normalise_(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Subtract ``mean`` from (b, C, ...) images and divide by ``std``, in place, one value a channel each.

    None leaves that out. What is made of large batches on the way would stay with the process.
    """

    def channelwise(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(-1, *[1] * (images.ndim - 2))

    if mean is not None:
        images.sub_(channelwise(mean))
    return images if std is None else images.div_(channelwise(std))
