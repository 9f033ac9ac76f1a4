"""A data spec, as written after --data, becomes train, validation and test images and a calibration draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mint_compress.data.arrays import IMAGE, as_images, as_targets, kind, read_npz
from mint_compress.data.augmentation import Augmented
from mint_compress.data.data import Data, Stats, classes_in, described
from mint_compress.data.datasets import ArrayDataset, ImageDataset, are_classes
from mint_compress.data.folders import FolderDataset, endings_text, image_files, unlabelled_files
from mint_compress.data.loaders import load_splits
from mint_compress.data.splits import held_out_of, random_split, stratified_split
from mint_compress.errors import MintError
from mint_compress.nn.io import describe
from mint_compress.options import is_place

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
    "digits, FILE.npz, a folder of class folders, images:DIR, "
    + ", ".join(f"{name}:DIR" for name in TORCHVISION)
    + ", package.module:function"
)


def load_data(
    spec: Any,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Data:
    """Open the data behind ``spec``.

    Parameters
    ----------
    spec
        ``digits`` (bundled with scikit-learn), an .npz file (x_train, y_train, x_test, y_test), a
        folder with train/ and val/ or test/, ``images:DIR`` for images without labels, at any depth, a
        torchvision set such as ``cifar10:DIR``, or ``package.module:function`` returning loaders. Or what
        such a function returns; see :func:`mint_compress.data.loaders.arranged`.
    mean, std
        Per channel, or one value for all. By default ImageNet's for three channels, MNIST's for one,
        and nothing for arrays of floats, for samples that are no images, and for loaders.
    input_shape
        What the network takes, without the batch. Digits and folders are resized to it; arrays must
        have it, with as many dimensions as there may be. By default (3, 32, 32) for digits,
        (3, 224, 224) for folders, else the data's own.
    seed
        For augmentation of images fetched one by one. The splits do not depend on it.
    workers
        Processes that read image files; 0: this one. By default one a core, 8 at most, where processes can
        be forked. What is read does not depend on it.

    Raises
    ------
    MintError
        Unknown spec, missing or broken file, arrays that do not fit together or the network, NaN.
    """
    shape = tuple(input_shape) if input_shape is not None else None
    if not isinstance(spec, str):
        _check_unnormalised("The loader", mean, std)
        return Data.from_loaders(spec, input_shape=shape)
    options = _Options(spec, tuple(mean) if mean else None, tuple(std) if std else None, shape, seed, workers)
    name, _, place = spec.partition(":")
    if spec == "digits":
        return _digits(options)
    if spec.lower().endswith(".npz"):
        return _npz(options)
    if name == "images" and place:
        return _images(options, Path(place))
    if name in TORCHVISION:
        return _torchvision(options, name, place)
    if Path(spec).is_dir():
        return _folders(options)
    if is_place(spec):
        _check_unnormalised(spec, mean, std)
        return Data.from_loaders(load_splits(spec), input_shape=shape, name=spec)
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
    workers: int | None

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


def _check_unnormalised(name: str, mean: object, std: object) -> None:
    if mean or std:
        raise MintError(f"{name} normalises by itself. Leave out --mean and --std.")


def _assemble(
    options: _Options,
    train: ImageDataset,
    validation: ImageDataset | None,
    test: ImageDataset,
    *,
    classes: int | None,
    shape: tuple[int, ...],
    stats: tuple[Stats, Stats],
    photographs: bool,
) -> Data:
    """Put a `Data` together; without ``validation`` it comes out of ``train``."""
    if validation is None:
        kept, held_out = _split(train, held_out_of(len(train)))
        train, validation = train.subset(kept), train.subset(held_out)
    augmented = train
    # maps and other targets would have to move with the image
    movable = train.labels is None or are_classes(train.labels)
    if photographs and movable and len(shape) == IMAGE and shape[0] == 3:
        augmented = Augmented(train, padding=max(1, min(shape[1:]) // 8), seed=options.seed)
    sizes = (len(train), len(validation), len(test))
    values = "no normalisation"
    if any(stats):
        values = f"mean {_numbers(stats[0] or (0.0,))}, std {_numbers(stats[1] or (1.0,))}"
    text = f"{described(options.spec, sizes, shape, classes, train.labels)}; {values}"
    return Data(train, validation, test, augmented, classes, shape, *stats, options.spec, sizes, text)


def _split(images: ImageDataset, held_out: int) -> tuple[Tensor, Tensor]:
    """Kept and held out, each class alike where there are classes."""
    if are_classes(images.labels):
        return stratified_split(images.labels, held_out)
    return random_split(len(images), held_out)


def _from_arrays(
    options: _Options,
    train: tuple[Tensor, Tensor | None],
    test: tuple[Tensor, Tensor | None],
    *,
    raw: bool,
    photographs: bool,
) -> Data:
    shape = tuple(train[0].shape[1:])
    # the defaults are those of images, flattened or not; a vector has no channels
    stats = options.normalisation(shape[0] if len(shape) > 1 else 1, raw=raw or len(shape) not in (1, IMAGE))
    sets = [ArrayDataset(*split, mean=stats[0], std=stats[1]) for split in (train, test)]
    classes = None if train[1] is None else classes_in(train[1], test[1])
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
    targets = {
        key: as_targets(array, key, len(images[key.replace("y", "x")]))
        for key, array in arrays.items()
        if key.startswith("y")
    }
    raw = images["x_train"].dtype != torch.uint8
    train, test = ((images[f"x_{part}"], targets.get(f"y_{part}")) for part in ("train", "test"))
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
            arrays.append((images, as_targets(np.asarray(labels), name, len(images))))
    except MintError:
        raise
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).replace("You can use download=True to download it", "").split())
        raise MintError(f"No {name} in {place} ({reason}). It must hold {holds}, from {source}") from None
    except ImportError as error:
        raise MintError(f"Reading {name} needs another package: {error}.") from None
    return _from_arrays(options, arrays[0], arrays[1], raw=False, photographs=photographs)


def _images(options: _Options, root: Path) -> Data:
    """Images without labels, at any depth; of train/ and val/ or test/ where there are such folders."""
    if not root.is_dir():
        raise MintError(f"No such folder: {str(root)!r}. Write images:DIR, where DIR holds images.")
    shape, stats = _image_options(options, root)
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "train" not in parts or len(parts) == 1:
        parts = {"train": root}
    files: dict[str, list[tuple[str, None]]] = {}
    passed_over: Counter[str] = Counter()
    for part, folder in parts.items():
        files[part], others = unlabelled_files(folder)
        passed_over += others
    sets = _read_together(options, files, shape, stats)
    if len(sets) == 1:
        whole = sets["train"]
        if len(whole) < 3:
            raise MintError(
                f"{root} has {len(whole)} images. Three are needed at least: to learn and to test."
            )
        kept, held_out = random_split(len(whole), held_out_of(len(whole)))
        sets = {"train": whole.subset(kept), "test": whole.subset(held_out)}
    return _of_folders(options, sets, None, shape, stats, passed_over)


def _image_options(options: _Options, root: Path) -> tuple[tuple[int, ...], tuple[Stats, Stats]]:
    """The shape that images of a folder get, and mean and std."""
    shape = options.input_shape or (3, 224, 224)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise MintError(
            f"{root} holds images, but the network takes {describe(shape)}. Needed: 1 or 3, H, W."
        )
    return shape, options.normalisation(shape[0], raw=False)


def _read_together(
    options: _Options,
    files: Mapping[str, Sequence[tuple[str, int | None]]],
    shape: tuple[int, ...],
    stats: tuple[Stats, Stats],
) -> dict[str, FolderDataset]:
    """A dataset of the files of each split, which the same processes read."""
    every = [one for part in files.values() for one in part]
    whole = FolderDataset(every, shape=shape, mean=stats[0], std=stats[1], workers=options.workers)
    ends = accumulate(map(len, files.values()))
    return {
        part: whole.subset(torch.arange(end - len(files[part]), end))
        for part, end in zip(files, ends, strict=True)
    }


def _of_folders(
    options: _Options,
    sets: Mapping[str, ImageDataset],
    classes: int | None,
    shape: tuple[int, ...],
    stats: tuple[Stats, Stats],
    passed_over: Counter[str],
) -> Data:
    # without test/, val/ is the test split
    test, validation = (sets["test"], sets.get("val")) if "test" in sets else (sets["val"], None)
    data = _assemble(
        options, sets["train"], validation, test, classes=classes, shape=shape, stats=stats, photographs=True
    )
    if not passed_over:
        return data
    said = f"{passed_over.total():,} files passed over ({endings_text(passed_over)})"
    return replace(data, description=f"{data.description}; {said}")


def _folders(options: _Options) -> Data:
    root = Path(options.spec)
    found = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "train" not in found or len(found) == 1:
        has = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise MintError(f"{root} needs train/ and test/ or val/, folders of class folders; it holds: {has}.")
    shape, stats = _image_options(options, root)
    files: dict[str, list[tuple[str, int]]] = {}
    names: list[str] = []
    passed_over: Counter[str] = Counter()
    for part, folder in found.items():
        files[part], classes, others = image_files(folder)
        passed_over += others
        if names and classes != names:
            odd = ", ".join(sorted(set(classes) ^ set(names))[:5])
            raise MintError(f"{folder} and {root / 'train'} have different class folders: {odd}.")
        names = classes
    sets = _read_together(options, files, shape, stats)
    return _of_folders(options, sets, len(names), shape, stats, passed_over)
