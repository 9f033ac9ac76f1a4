"""Images and labels from arrays: which axis is which, what the values mean, and whether they can be right."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.nn.io import InputShape, describe, is_single

KEYS = ("x_train", "y_train", "x_test", "y_test")
"""Without labels, those of the images alone."""

IMAGE = 3
"""Dimensions of one image: channels, height, width."""


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The four arrays of an .npz file, or the two of the images alone; nothing in it is executed.

    Raises
    ------
    MintError
        No such file, no .npz file, a missing key, a damaged member, arrays of Python objects.
    """
    if not path.is_file():
        raise MintError(f"No such file: {path}")
    with _reading(path):
        found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise MintError(f"{path} holds a single array. Save {', '.join(KEYS)} with np.savez.")
    with found as file:
        keys = KEYS if any(key in file.files for key in KEYS if key[0] == "y") else KEYS[::2]
        missing = [key for key in keys if key not in file.files]
        if missing:
            raise MintError(
                f"{path} has no {', '.join(missing)} (it has: {', '.join(file.files) or 'nothing'}). "
                f"Needed: {', '.join(KEYS)}."
            )
        with _reading(path):
            return {key: file[key] for key in keys}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Only NumPy, which reads the file, runs in this block."""
    try:
        yield
    # NumPy at what is no array or holds Python objects, and zipfile below it
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MintError(f"Cannot read {path} as .npz ({reason}). Save it again with np.savez.") from None


def as_images(array: NDArray[np.generic], name: str, input_shape: tuple[int, ...] | None) -> Tensor:
    """Images, or samples of another kind, as the network takes them: uint8 as it is, floats as float32.

    Parameters
    ----------
    array
        (n, *input_shape), or the same with the channels last or a single channel left out. Without
        ``input_shape``: images (n, H, W, C), (n, C, H, W) or (n, H, W), vectors (n, D), and whatever has
        more dimensions as it is.
    name
        Of the array, for messages.
    input_shape
        What a network takes, without the batch; decides between the layouts, and samples of another
        shape are an error. A one-dimensional shape flattens samples that have as many values.

    Returns
    -------
    Tensor
        (n, C, H, W), (n, D) or (n, *input_shape).

    Raises
    ------
    MintError
        Other types, NaN or infinity, no samples, an undecidable layout, the wrong shape.
    """
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise MintError(f"{name} is {array.dtype}. Save it as uint8 (0..255) or as float32 (taken as it is).")
    if array.ndim < 2 or 0 in array.shape:
        raise MintError(
            f"{name} has shape {array.shape}. Images are (n, H, W, C), (n, C, H, W) or (n, H, W); "
            "other samples have the shape that the network takes, with n before it."
        )
    fitting = _fitting(array, input_shape)
    images = torch.from_numpy(_channels_first(array, name, input_shape) if fitting is None else fitting)
    if images.dtype != torch.uint8:
        images = images.float()
        if not torch.isfinite(images).all():
            bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
            raise MintError(
                f"{name} has NaN or infinite values in {bad:,} of {len(images):,} samples. Remove them."
            )
    if input_shape is not None and len(input_shape) == 1 and math.prod(images.shape[1:]) == input_shape[0]:
        images = images.flatten(1)
    if input_shape is not None and tuple(images.shape[1:]) != input_shape:
        raise _misfit(name, tuple(images.shape[1:]), input_shape)
    return images


def kind(shape: InputShape) -> str:
    """What samples of this shape are called in a message; several inputs are images with something beside."""
    return "images" if not is_single(shape) or len(shape) == IMAGE else "samples"


def _misfit(name: str, has: tuple[int, ...], wants: tuple[int, ...]) -> MintError:
    return MintError(
        f"{name} has {kind(has)} of {describe(has)}, but the network takes {describe(wants)}. "
        f"{'Resize' if len(has) == len(wants) == IMAGE else 'Reshape'} the arrays."
    )


def _fitting(array: NDArray[np.generic], input_shape: tuple[int, ...] | None) -> NDArray[np.generic] | None:
    """The layout of the array whose samples have ``input_shape``, its own before others; None without one."""
    for layout in (array, np.moveaxis(array, -1, 1), array[:, None]):
        if layout.shape[1:] == input_shape:
            return np.ascontiguousarray(layout)
    return None


def _channels_first(
    array: NDArray[np.generic], name: str, input_shape: tuple[int, ...] | None
) -> NDArray[np.generic]:
    """The layout that images have, by the numbers of axes and of channels; other samples as they are."""
    if input_shape is not None and len(input_shape) not in (1, IMAGE):
        raise _misfit(name, array.shape[1:], input_shape)
    if array.ndim == IMAGE:
        return np.ascontiguousarray(array[:, None])
    if array.ndim != IMAGE + 1:
        return np.ascontiguousarray(array)
    fits = [layout for layout in (np.moveaxis(array, 3, 1), array) if layout.shape[1] in (1, 3)]
    if not fits or (len(fits) == 2 and fits[0].shape != fits[1].shape):
        if input_shape is not None:
            raise _misfit(name, array.shape[1:], input_shape)
        raise MintError(
            f"{name} has shape {array.shape}: which axis is the channels? "
            "Give --input-shape, or save it as (n, C, H, W) with 1 or 3 channels."
        )
    return np.ascontiguousarray(fits[0])


def as_targets(array: NDArray[np.generic], name: str, count: int) -> Tensor:
    """Targets (n, ...): integers and booleans as int64, floats as float32; (n, 1) integers as (n,).

    Raises
    ------
    MintError
        Other types, not one per image, negative class numbers, NaN or infinity.
    """
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise MintError(
            f"{name} is {array.dtype}. Targets are integers or floats: save it as int64 or float32."
        )
    if array.ndim == 0 or len(array) != count:
        has = len(array) if array.ndim else 1
        raise MintError(f"{name} has {has:,} labels for {count:,} images. One label per image is needed.")
    if whole and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if whole and array.ndim == 1 and array.min() < 0:
        raise MintError(f"{name} has the label {int(array.min())}. Labels are integers from 0.")
    if not whole and not np.isfinite(array).all():
        raise MintError(f"{name} has NaN or infinite values. Remove those samples.")
    return torch.from_numpy(array.astype(np.int64 if whole else np.float32))
