"""A data spec, as written after --data, becomes train, validation and test images and a calibration draw."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mint_compress.data.arrays import IMAGE, as_images, as_labels, kind, read_npz
from mint_compress.data.augmentation import Augmented
from mint_compress.data.counting import size
from mint_compress.data.datasets import ArrayDataset, ImageDataset, Source
from mint_compress.data.folders import FolderDataset, endings_text, image_files
from mint_compress.data.loaders import class_count, first_shape, load_splits
from mint_compress.data.splits import balanced_draw, draw_from_batches, stratified_split
from mint_compress.errors import MintError
from mint_compress.nn.contexts import seeded
from mint_compress.nn.io import Inputs, InputShape, describe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MNIST = ((0.1307,), (0.3081,))

# spec name -> torchvision class, what its folder holds, where to get it, whether the images are photographs
TORCHVISION = {
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "www.cs.toronto.edu/~kriz/cifar.html", True),
    "cifar100": ("CIFAR100", "cifar-100-python", "www.cs.toronto.edu/~kriz/cifar.html", True),
    "mnist": ("MNIST", "MNIST/raw", "ossci-datasets.s3.amazonaws.com/mnist", False),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", "github.com/zalandoresearch/fashion-mnist", False),
    "kmnist": ("KMNIST", "KMNIST/raw", "codh.rois.ac.jp/kmnist", False),
    "svhn": ("SVHN", "train_32x32.mat, test_32x32.mat", "ufldl.stanford.edu/housenumbers", False),
    "stl10": ("STL10", "stl10_binary", "cs.stanford.edu/~acoates/stl10", True),
}
CHOICES = (
    "digits, FILE.npz, a folder of class folders, "
    + ", ".join(f"{name}:DIR" for name in TORCHVISION)
    + ", package.module:function"
)

Stats = tuple[float, ...] | None


@dataclass(frozen=True)
class Data:
    """What a data spec stands for.

    Attributes
    ----------
    train, validation, test
        Give (image, label): a float32 tensor of ``input_shape``, normalised, and an int. From
        ``package.module:function`` they are what the function returned.
    augmented
        ``train`` with augmentation that suits it; ``train`` itself where none does.
    classes
        Number of classes.
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
    classes: int
    input_shape: InputShape
    mean: Stats
    std: Stats
    name: str
    sizes: tuple[int | None, ...]
    description: str

    @property
    def splits(self) -> dict[str, Source]:
        """Train, validation and test, by their names in messages."""
        return {
            "the training data": self.train,
            "the validation data": self.validation,
            "the test data": self.test,
        }

    def calibration(self, count: int, *, seed: int) -> tuple[Inputs, Tensor]:
        """Draw ``count`` training images without replacement, as many of each class as possible.

        Parameters
        ----------
        count
            Images wanted; at most as many as there are come back.
        seed
            The same seed draws the same images.

        Returns
        -------
        images, labels
            (n, C, H, W) float32, or several inputs of n samples, and (n,) int64, in random order.
            Classes with too few images are filled up from the others.
        """
        if isinstance(self.train, ImageDataset):
            return self.train.gather(balanced_draw(self.train.labels, count, seed=seed))
        with seeded(seed):
            return draw_from_batches(self.train, self.classes, count, seed=seed)


def load_data(
    spec: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Data:
    """Open the data behind ``spec``.

    Parameters
    ----------
    spec
        ``digits`` (bundled with scikit-learn), an .npz file (x_train, y_train, x_test, y_test), a
        folder with train/ and val/ or test/, a torchvision set such as ``cifar10:DIR``, or
        ``package.module:function`` returning loaders or datasets as a dict or tuple (train, val, test).
    mean, std
        Per channel, or one value for all. By default ImageNet's for three channels, MNIST's for one,
        and nothing for arrays of floats, for samples that are no images, and for loaders.
    input_shape
        What the network takes, without the batch. Digits and folders are resized to it; arrays must
        have it, with as many dimensions as there may be. By default (3, 32, 32) for digits,
        (3, 224, 224) for folders, else the data's own.
    seed
        For augmentation of images fetched one by one. The splits do not depend on it.

    Raises
    ------
    MintError
        Unknown spec, missing or broken file, arrays that do not fit together or the network, NaN,
        labels that are no class numbers, one class only.
    """
    shape = tuple(input_shape) if input_shape is not None else None
    options = _Options(spec, tuple(mean) if mean else None, tuple(std) if std else None, shape, seed)
    name, _, place = spec.partition(":")
    if spec == "digits":
        return _digits(options)
    if spec.lower().endswith(".npz"):
        return _npz(options)
    if name in TORCHVISION:
        return _torchvision(options, name, place)
    if Path(spec).is_dir():
        return _folders(options)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        return _foreign(options)
    problem = f"No such folder: {spec!r}" if "/" in spec or "\\" in spec else f"Unknown data {spec!r}"
    if Path(spec).is_file():
        problem = f"{spec!r} is a file of another kind"
    raise MintError(f"{problem}. Choose from: {CHOICES}.")


@dataclass(frozen=True)
class _Options:
    spec: str
    mean: Stats
    std: Stats
    input_shape: tuple[int, ...] | None
    seed: int

    def normalisation(self, channels: int, *, raw: bool) -> tuple[Stats, Stats]:
        """Mean and std to use; ``raw`` values (floats) are left alone unless the user says otherwise."""
        known = {} if raw else {1: MNIST, 3: IMAGENET}
        mean, std = known.get(channels, (None, None))
        for option, given in (("--mean", self.mean), ("--std", self.std)):
            if given is not None and len(given) not in (1, channels):
                raise MintError(f"{option} has {len(given)} values, but {self.spec} has {channels} channels.")
            if given is not None and not all(map(math.isfinite, given)):
                raise MintError(f"{option} must be finite numbers, got {_numbers(given)}.")
        if self.std is not None and min(self.std) <= 0:
            raise MintError(f"--std must be above 0, got {_numbers(self.std)}.")
        # one value stands for every channel
        mean, std = (
            given * (channels // len(given)) if given else default
            for given, default in ((self.mean, mean), (self.std, std))
        )
        return mean, std


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _check_labels(labels: Tensor, where: str) -> None:
    if len(torch.unique(labels)) < 2:
        raise MintError(f"{where} has one class only (label {int(labels[0])}). Two or more are needed.")


def _assemble(
    options: _Options,
    train: ImageDataset,
    validation: ImageDataset | None,
    test: ImageDataset,
    *,
    classes: int,
    shape: tuple[int, ...],
    stats: tuple[Stats, Stats],
    photographs: bool,
) -> Data:
    """Put a `Data` together; without ``validation`` it comes out of ``train``."""
    _check_labels(train.labels, f"{options.spec} (train)")
    if validation is None:
        kept, held_out = stratified_split(train.labels, max(1, min(5000, len(train) // 10)))
        train, validation = train.subset(kept), train.subset(held_out)
    augmented = train
    if photographs and len(shape) == IMAGE and shape[0] == 3:
        augmented = Augmented(train, padding=max(1, min(shape[1:]) // 8), seed=options.seed)
    sizes = (len(train), len(validation), len(test))
    text = _describe(options.spec, sizes, shape, classes, *stats)
    return Data(train, validation, test, augmented, classes, shape, *stats, options.spec, sizes, text)


def _describe(
    name: str, sizes: Sequence[int | None], shape: InputShape, classes: int, mean: Stats, std: Stats
) -> str:
    counts = ["?" if size is None else f"{size:,}" for size in sizes]
    values = "no normalisation"
    if mean or std:
        values = f"mean {_numbers(mean or (0.0,))}, std {_numbers(std or (1.0,))}"
    return (
        f"{name}: {counts[0]} train, {counts[1]} validation, {counts[2]} test {kind(shape)} "
        f"of {describe(shape)} in {classes} classes; {values}"
    )


def _from_arrays(
    options: _Options,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    raw: bool,
    photographs: bool,
) -> Data:
    shape = tuple(train[0].shape[1:])
    # the defaults are those of images, flattened or not; a vector has no channels
    stats = options.normalisation(shape[0] if len(shape) > 1 else 1, raw=raw or len(shape) not in (1, IMAGE))
    sets = [ArrayDataset(*split, mean=stats[0], std=stats[1]) for split in (train, test)]
    classes = int(max(train[1].max(), test[1].max())) + 1
    return _assemble(
        options, sets[0], None, sets[1], classes=classes, shape=shape, stats=stats, photographs=photographs
    )


def _digits(options: _Options) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MintError("The data 'digits' is part of scikit-learn. pip install scikit-learn") from None
    shape = options.input_shape or (3, 32, 32)
    if len(shape) not in (1, 3):
        raise MintError(f"The digits are images, but the network takes {describe(shape)}. Needed: C, H, W.")
    bunch = load_digits()
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if len(shape) == 1 and side * side != shape[0]:
        raise MintError(
            f"The digits are square, but the network takes {shape[0]} values. Give another --data."
        )
    channels, height, width = shape if len(shape) == 3 else (1, side, side)
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    images = images.expand(-1, channels, -1, -1).reshape(len(images), *shape)
    labels = torch.from_numpy(bunch.target).long()
    kept, held_out = stratified_split(labels, len(labels) // 5)
    splits = [(images[rows], labels[rows]) for rows in (kept, held_out)]
    return _from_arrays(options, splits[0], splits[1], raw=False, photographs=False)


def _npz(options: _Options) -> Data:
    arrays = read_npz(Path(options.spec))
    images = {key: as_images(arrays[key], key, options.input_shape) for key in ("x_train", "x_test")}
    if images["x_train"].shape[1:] != images["x_test"].shape[1:]:
        has = [tuple(x.shape[1:]) for x in images.values()]
        raise MintError(
            f"{options.spec}: x_train has {kind(has[0])} of {describe(has[0])}, "
            f"x_test {kind(has[1])} of {describe(has[1])}. They must agree."
        )
    if images["x_train"].dtype != images["x_test"].dtype:
        raise MintError(f"{options.spec}: x_train and x_test must both be uint8 or both be floats.")
    labels = {
        key: as_labels(arrays[key], key, len(images[key.replace("y", "x")])) for key in ("y_train", "y_test")
    }
    raw = images["x_train"].dtype != torch.uint8
    train, test = (images["x_train"], labels["y_train"]), (images["x_test"], labels["y_test"])
    return _from_arrays(options, train, test, raw=raw, photographs=not raw)


def _torchvision(options: _Options, name: str, place: str) -> Data:
    import torchvision

    kind, holds, source, photographs = TORCHVISION[name]
    if not Path(place).is_dir() or not place:
        raise MintError(
            f"No such folder: {place!r}. Write {name}:DIR, where DIR holds {holds}, from {source}"
        )
    arrays = []
    try:
        for part in ("train", "test"):
            split = {"split": part} if name in ("svhn", "stl10") else {"train": part == "train"}
            found = getattr(torchvision.datasets, kind)(place, download=False, **split)
            labels = found.targets if hasattr(found, "targets") else found.labels
            images = as_images(np.asarray(found.data), f"{name} ({part})", options.input_shape)
            arrays.append((images, as_labels(np.asarray(labels), name, len(images))))
    except MintError:
        raise
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).replace("You can use download=True to download it", "").split())
        raise MintError(f"No {name} in {place} ({reason}). It must hold {holds}, from {source}") from None
    except ImportError as error:
        raise MintError(f"Reading {name} needs another package: {error}.") from None
    return _from_arrays(options, arrays[0], arrays[1], raw=False, photographs=photographs)


def _folders(options: _Options) -> Data:
    root = Path(options.spec)
    found = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "train" not in found or len(found) == 1:
        has = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise MintError(f"{root} needs train/ and test/ or val/, folders of class folders; it holds: {has}.")
    shape = options.input_shape or (3, 224, 224)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise MintError(
            f"{root} holds images, but the network takes {describe(shape)}. Needed: 1 or 3, H, W."
        )
    stats = options.normalisation(shape[0], raw=False)
    sets: dict[str, ImageDataset] = {}
    names: list[str] = []
    passed_over: Counter[str] = Counter()
    for part, folder in found.items():
        files, classes, others = image_files(folder)
        passed_over += others
        if names and classes != names:
            odd = ", ".join(sorted(set(classes) ^ set(names))[:5])
            raise MintError(f"{folder} and {root / 'train'} have different class folders: {odd}.")
        names = classes
        sets[part] = FolderDataset(files, shape=shape, mean=stats[0], std=stats[1])
    # without test/, val/ is the test split
    test, validation = (sets["test"], sets.get("val")) if "test" in sets else (sets["val"], None)
    data = _assemble(
        options,
        sets["train"],
        validation,
        test,
        classes=len(names),
        shape=shape,
        stats=stats,
        photographs=True,
    )
    if not passed_over:
        return data
    said = f"{passed_over.total():,} files passed over ({endings_text(passed_over)})"
    return replace(data, description=f"{data.description}; {said}")


def _foreign(options: _Options) -> Data:
    splits = load_splits(options.spec)
    if options.mean or options.std:
        raise MintError(f"{options.spec} normalises by itself. Leave out --mean and --std.")
    shape = first_shape(options.spec, splits["test"], options.input_shape)
    classes = class_count(splits["test"])
    train, validation, test = (splits[key] for key in ("train", "validation", "test"))
    sizes = tuple(size(source) for source in (train, validation, test))
    text = _describe(options.spec, sizes, shape, classes, None, None)
    return Data(train, validation, test, train, classes, shape, None, None, options.spec, sizes, text)
