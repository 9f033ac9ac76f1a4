"""Images flipped and shifted by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mint_compress.data.datasets import Batches, ImageDataset
from mint_compress.processes import Share


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

    def gathered(
        self,
        chunks: Sequence[Tensor],
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Batches:
        # drawn here, batch after batch, whoever reads the images
        drawing = generator or self.generator
        for indices, (images, labels) in zip(chunks, self.dataset.gathered(chunks, share=share), strict=True):
            rows = range(len(indices)) if share is None else share.of(len(indices))
            drawn_for = None if share is None else (len(indices), rows[: len(images)])
            yield flip_and_crop(images, padding=self.padding, generator=drawing, drawn_for=drawn_for), labels

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
    drawn_for: tuple[int, Sequence[int]] | None = None,
) -> Tensor:
    """Shift each of ``images`` (b, C, H, W) by up to ``padding`` pixels, and mirror about half of them.

    Parameters
    ----------
    generator
        On the CPU, wherever the images are.
    background
        What the images are padded with.
    drawn_for
        How many images a batch has of which these are a part, and which: what is drawn is as for all.
    """
    count, _, height, width = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, [padding] * 4, value=background)
    whole, part = (count, slice(None)) if drawn_for is None else (drawn_for[0], list(drawn_for[1]))
    top, left = torch.randint(2 * padding + 1, (2, whole, 1), generator=generator)[:, part].to(device)
    rows = top + torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    if flip:
        mirrored = (torch.rand(whole, 1, generator=generator) < 0.5)[part].to(device)
        across = torch.where(mirrored, across.flip(0), across)
    columns = left + across
    each = torch.arange(count, device=device)[:, None, None]
    # indices that are apart put their axes first: (count, height, width, channels)
    picked = padded[each, :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
