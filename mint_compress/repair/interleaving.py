"""Whether several forward passes through one network may take turns, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import ForeignError, OwnFault, foreign, is_strict
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.io import Inputs, count, forward, select, tensors_in
from mint_compress.nn.layers import WEIGHTED
from mint_compress.nn.recurrent import RECURRENT
from mint_compress.repair.synchronised_passes import Pass, synchronised_passes


def can_interleave(model: nn.Module, inputs: Inputs) -> bool:
    """Whether two passes that take turns give what they give one after the other.

    They do not where ``forward`` leaves tensors on the network and reads them later, as some skip
    connections are made: one pass then reads what another has left.

    Parameters
    ----------
    model
        Run in eval mode and without gradients, and left as it was.
    inputs
        The first three samples are looked at. Of a single one there is nothing to take turns with.

    Raises
    ------
    OwnFault
        A hook of ours failed; only where :func:`is_strict`, else the passes are not interleaved.
    """
    few = [(select(inputs, rows), None) for rows in (slice(0, 1), slice(1, 3))]
    if count(few[1][0]) == 0:
        return True
    with evaluating(model), torch.no_grad():
        separate = [[t.clone() for t in tensors_in(forward(model, batch))] for batch in few]
        try:
            interleaved = _interleaved(model, few)
        except ForeignError:  # the network's forward, on what another pass has left
            return False
        except OwnFault:
            if is_strict():
                raise
            return False
    return all(
        _agree(a, b)
        for one, other in zip(separate, interleaved, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def _interleaved(model: nn.Module, batches: Sequence[Any]) -> list[list[Tensor]]:
    """The outputs for each batch, where the passes take turns at every weighted layer."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (*WEIGHTED, *RECURRENT))}
    with synchronised_passes(model, layers, batches, after=False) as passes:
        while any([_advanced(one) for one in passes]):
            pass
        return [list(tensors_in(one.result)) for one in passes]


def _advanced(one: Pass) -> bool:
    """Let a pass go on; whether it has paused again rather than ended."""
    with foreign("The network's forward pass"):  # hands our hooks' errors on as they are
        return one.advance() is not None


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return not a.is_floating_point() or torch.allclose(a, b, 1e-3, 1e-5, equal_nan=True)
