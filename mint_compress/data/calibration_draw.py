"""The images that calibration and repair look at: how many can be afforded, and which."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mint_compress.data.batching import batches
from mint_compress.data.data import Data
from mint_compress.data.datasets import Source
from mint_compress.data.synthetic import synthetic_images
from mint_compress.errors import MintError
from mint_compress.nn.batch_size import largest_output
from mint_compress.nn.io import Inputs, InputShape, concatenate, count, is_single, select, to

ACTIVATIONS = 4 * 2**30
"""Bytes that calibration may keep alive; larger networks get fewer images by default."""
LEAST_IMAGES = 8


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


def affordable(model: nn.Module, example: Inputs, wanted: int) -> int:
    """``wanted`` images, or as many as may be kept alive in two synchronised forward passes.

    Roughly, one image keeps three of the largest maps alive in each of them.
    """
    return min(wanted, max(LEAST_IMAGES, ACTIVATIONS // (2 * 3 * largest_output(model, example))))
