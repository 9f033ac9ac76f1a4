"""Images flipped and shifted by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mint_compress.data.datasets import Batches, ImageDataset


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

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(
        self, indices: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        [batch] = self.gathered([indices], generator)
        return batch

    def gathered(self, chunks: Sequence[Tensor], generator: torch.Generator | None = None) -> Batches:
        # drawn here, batch after batch, whoever reads the images
        for images, labels in self.dataset.gathered(chunks):
            yield flip_and_crop(images, padding=self.padding, generator=generator or self.generator), labels

    @property
    def unreadable(self) -> Mapping[str, str]:
        return self.dataset.unreadable


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
