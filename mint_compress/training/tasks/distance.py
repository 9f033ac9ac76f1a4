"""How far the outputs of two networks are apart; a large tensor counts no more than a small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.nn.io import tensors_in


def output_distance(outputs: Any, taught: Any) -> Tensor:
    """Share of the variance of a teacher's outputs that the other network's lack, the mean over the tensors.

    Parameters
    ----------
    outputs, taught
        Nested alike: tensors, or mappings, lists and tuples of such. Tensors that are no floats are left out.

    Returns
    -------
    Tensor
        A scalar in float32, 0 for equal outputs and about 1 for constant ones at the teacher's mean.

    Raises
    ------
    MintError
        No tensor of floats, or tensors of other shapes.
    """
    pairs = list(zip(_floats(outputs), _floats(taught), strict=False))
    shapes = [[tuple(x.shape) for x in _floats(side)] for side in (outputs, taught)]
    if not pairs or shapes[0] != shapes[1]:
        raise MintError(
            f"Outputs of shapes {shapes[0]} cannot be compared with outputs of shapes {shapes[1]}."
        )
    return torch.stack([lacking(ours, theirs) for ours, theirs in pairs]).mean()


def _floats(outputs: Any) -> list[Tensor]:
    return [x for x in tensors_in(outputs) if x.is_floating_point()]


def lacking(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference over the variance of ``theirs``, a scalar; both are of one shape."""
    theirs = theirs.detach().float()
    # of a constant the variance is 0 but for rounding; its size stands in then
    scale = theirs.var(correction=0).clamp_min(1e-12 * theirs.square().mean()).clamp_min(1e-20)
    return (ours.float() - theirs).square().mean() / scale
