"""What a data spec stands for: training, validation and test images, and a calibration draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mint_compress.data.arrays import kind
from mint_compress.data.counting import size
from mint_compress.data.datasets import ImageDataset, Source, are_classes
from mint_compress.data.folders import named
from mint_compress.data.label_maps import class_numbers, with_class
from mint_compress.data.loaders import arranged, class_count, first_batch, input_shape_of, is_source
from mint_compress.data.splits import balanced_draw, draw_from_batches
from mint_compress.data.targets import Targets, concatenate_targets
from mint_compress.nn.contexts import seeded
from mint_compress.nn.io import Inputs, InputShape, describe

Stats = tuple[float, ...] | None


@dataclass(frozen=True)
class Data:
    """What a data spec stands for.

    Attributes
    ----------
    train, validation, test
        Give images, float32 tensors of ``input_shape``, normalised, with their targets if there are any.
        From ``package.module:function`` they are what the function returned.
    augmented
        ``train`` with augmentation that suits it; ``train`` itself where none does.
    classes
        Number of classes; None where the targets are no class numbers.
    input_shape
        (C, H, W) of one image, or the shape of another sample, without the batch; a tuple or dict of such
        for several inputs.
    mean, std
        What was subtracted and divided by, per channel; None when the values are as they were.
    name
        The spec.
    sizes
        Images that train, validation and test give in one pass; None where a loader does not say.
    description
        One line with the sizes of the splits, mean and std, and how many files are no images.
    """

    train: Source
    validation: Source
    test: Source
    augmented: Source
    classes: int | None
    input_shape: InputShape
    mean: Stats
    std: Stats
    name: str
    sizes: tuple[int | None, ...]
    description: str

    @classmethod
    def from_loaders(
        cls,
        train: Any,
        validation: Source | None = None,
        test: Source | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        name: str = "loaders",
    ) -> Data:
        """Loaders, datasets or other iterables of batches, as they are.

        Parameters
        ----------
        train, validation, test
            See :func:`mint_compress.data.loaders.arranged`, also for what stands in for those that are None.
        input_shape
            What the network takes; another shape is an error.
        name
            For messages and the report.

        Raises
        ------
        MintError
            Something else, no batch, or inputs that are no finite floats.
        """
        given = {"train": train, "validation": validation, "test": test}
        others = {key: source for key, source in given.items() if source is not None}
        splits, remark = arranged(train if len(others) == 1 else others, name)
        inputs, targets = first_batch(name, splits["test"])
        shape = input_shape_of(name, inputs, input_shape)
        counted = splits.values() if len(others) == 1 and is_source(train) else [splits["test"]]
        classes = max(map(class_count, counted)) if _are_numbers(targets) else None
        every = splits["train"], splits["validation"], splits["test"]
        sizes = tuple(map(size, every))
        text = described(name, sizes, shape, classes, targets) + "; no normalisation" + remark
        return cls(*every, splits["train"], classes, shape, None, None, name, sizes, text)

    @property
    def splits(self) -> dict[str, Source]:
        """Train, validation and test, by their names in messages."""
        return {
            "the training data": self.train,
            "the validation data": self.validation,
            "the test data": self.test,
        }

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line that names the images which could not be read so far, if there are any."""
        splits = [source for source in self.splits.values() if isinstance(source, ImageDataset)]
        unreadable = {path: reason for source in splits for path, reason in source.unreadable.items()}
        return (f"images left out, as they cannot be read: {named(unreadable)}",) if unreadable else ()

    def calibration(self, count: int, *, seed: int) -> tuple[Inputs, Targets]:
        """Draw ``count`` training images without replacement, as many of each class as possible.

        Parameters
        ----------
        count
            Images wanted; at most as many as there are come back.
        seed
            The same seed draws the same images.

        Returns
        -------
        inputs, targets
            (n, C, H, W) float32, or several inputs of n samples, and their targets, in random order. Classes
            with too few images are filled up from the others; without classes all images are alike.
        """
        if isinstance(self.train, ImageDataset):
            return self._readable(self.train, count, seed)
        with seeded(seed):
            return draw_from_batches(self.train, self.classes, count, seed=seed)

    def _readable(self, train: ImageDataset, count: int, seed: int) -> tuple[Tensor, Targets]:
        """Others take the place of images that cannot be read, as long as there are any."""
        rows = self._rows(train, count, seed)
        images, targets = train.gather(rows)
        while len(images) < min(count, len(train)):
            more = self._rows(train, len(rows) + count - len(images), seed)
            if not len(more := more[~torch.isin(more, rows)]):
                break
            rows = torch.cat([rows, more])
            further = train.gather(more)
            images = torch.cat([images, further[0]])
            targets = None if targets is None else concatenate_targets([targets, further[1]])
        return images, targets

    @staticmethod
    def _rows(train: ImageDataset, count: int, seed: int) -> Tensor:
        if are_classes(train.labels):
            return balanced_draw(train.labels, count, seed=seed)
        return torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]


def _are_numbers(targets: Targets) -> bool:
    """Whether these may be class numbers, of samples or of pixels."""
    return (
        isinstance(targets, Tensor)
        and targets.ndim in (1, 3)
        and not (targets.is_floating_point() or targets.dtype == torch.bool)
    )


def classes_in(*targets: Tensor | None) -> int | None:
    """One more than the largest class number of samples or pixels; None for other targets."""
    numbers = [class_numbers(each) for each in targets if _are_numbers(each) and each is not None]
    if len(numbers) < len(targets):
        return None
    return max(map(_largest, numbers)) + 1


def _largest(numbers: Tensor) -> int:
    kept = numbers[with_class(numbers)]
    return int(kept.max()) if kept.numel() else 0


def described(
    name: str, sizes: Sequence[int | None], shape: InputShape, classes: int | None, targets: Targets
) -> str:
    """``digits: 1,295 train, 143 validation, 359 test images of 3x32x32 in 10 classes``."""
    counts = ["?" if size is None else f"{size:,}" for size in sizes]
    if classes is not None:
        given = f"in {classes} classes"
    elif targets is None:
        given = "without labels"
    else:
        given = f"with targets {_one_of(targets)}"
    return (
        f"{name}: {counts[0]} train, {counts[1]} validation, {counts[2]} test {kind(shape)} "
        f"of {describe(shape)} {given}"
    )


def _one_of(targets: Targets) -> str:
    """What stands for one sample in the targets of a batch."""
    if isinstance(targets, Tensor):
        shape = "x".join(map(str, targets.shape[1:])) or "one number"
        return f"of {shape}, {str(targets.dtype).removeprefix('torch.')}"
    if isinstance(targets, list | tuple):
        return _one_of(targets[0]) if targets else "of nothing"
    return f"({', '.join(map(str, targets))})" if isinstance(targets, dict) else type(targets).__name__
