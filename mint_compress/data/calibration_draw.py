"""The images that calibration and repair look at: how many can be afforded, and which."""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.data.batching import batches
from mint_compress.data.data import Data
from mint_compress.data.datasets import Source
from mint_compress.data.synthetic import synthetic_images
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, InputShape, concatenate, count, is_single, select, tensors, to

INPUT_BYTES = 2 * 2**30
"""Bytes of images that are held at once by default."""


def one_sample(data: Data | None, shape: InputShape, *, seed: int) -> Inputs:
    """One sample to trace with; a real one where there are several inputs, whose types may matter."""
    if data is None or is_single(shape):
        return torch.zeros(1, *shape)
    return data.calibration(1, seed=seed)[0]


def draw(
    data: Data | None, example: Inputs, wanted: int, *, exact: bool, device: torch.device, seed: int
) -> Inputs:
    """Calibration images: class-balanced from the training split, or synthetic.

    Parameters
    ----------
    data
        None: synthetic images, in the shape of ``example``.
    example
        One sample.
    wanted, exact
        How many; unless ``exact``, fewer where there are fewer.

    Returns
    -------
    Inputs
        On ``device``.

    Raises
    ------
    MintError
        More than the training split has are asked for.
    """
    if data is None:
        assert isinstance(example, Tensor)
        return to(synthetic_images(wanted, example.shape[1:], seed=seed), device)
    images, _ = data.calibration(wanted, seed=seed)
    if exact and count(images) < wanted:
        raise MintError(
            f"{wanted} calibration images were asked for, but the training split has {count(images)}. "
            "Ask for fewer."
        )
    return to(images, device)


def first_inputs(source: Source, wanted: int) -> Inputs:
    """The first inputs that a source gives, at most so many."""
    parts: list[Inputs] = []
    for inputs, _ in batches(source, wanted):
        parts.append(inputs)
        if sum(map(count, parts)) >= wanted:
            break
    return select(concatenate(parts), slice(wanted))


def affordable(example: Inputs, wanted: int) -> tuple[int, str]:
    """``wanted`` samples, or as many as :data:`INPUT_BYTES` hold, and then why."""
    each = sum(x[:1].numel() * x.element_size() for x in tensors(example))
    most = max(1, INPUT_BYTES // max(each, 1))
    if most >= wanted:
        return wanted, ""
    return most, f" (more take over {INPUT_BYTES >> 30} GiB of memory; --calibration-images asks for them)"
