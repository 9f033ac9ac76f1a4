"""Parity: an exported model says the same as the module it came from, on real samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mint_compress.errors import CheckFailed, ForeignError, MintError, first_line
from mint_compress.exporting.differences import Differences
from mint_compress.exporting.protocol import IMAGES, arrays, on_cpu
from mint_compress.exporting.session import Array, Session
from mint_compress.nn.copying import copied
from mint_compress.nn.io import Inputs, count, mapped, run, select, tensors, tensors_in
from mint_compress.reporting.records import Parity

LARGER = (32, 64)
"""Pixels by which images are larger where other sizes are tried."""
TOLERANCE = 1e-4
"""Largest difference of an output, as a share of its largest magnitude."""
BATCHES = (1, 7)
"""Batch sizes for parity: the one that tracing may take for a constant, and one nobody exports with."""


def check_parity(
    model: nn.Module,
    session: Session,
    samples: Inputs,
    *,
    tolerance: float = TOLERANCE,
    logits: int | None = 0,
) -> Parity:
    """Compare a session with the module, one sample at a time (seven of them) and all in sevens.

    Parameters
    ----------
    model
        The module, on any device; the reference is computed on the CPU in its own precision.
    session
        The exported file, opened.
    samples
        Real inputs (n, ...), a dict of them by name. Fewer than seven are repeated.
    tolerance
        Largest difference allowed, as a share of the largest magnitude of that output.
    logits
        Which output has a logit for every class in its second dimension; None: there are no classes.

    Raises
    ------
    CheckFailed
        Number or shape of the outputs, or a difference above the tolerance, or not a number.
    """
    inputs = mapped(samples, lambda x: x.detach().cpu())
    if not count(inputs):
        raise MintError("Parity needs at least one sample; none was given.")
    found = Differences()
    agreed: list[Array] = []
    with on_cpu(model) as reference, torch.no_grad():
        for batch in _batches(inputs):
            expected = [output.numpy() for output in tensors_in(run(reference, batch))]
            got = session.run(arrays(session, batch))
            _same_shapes(expected, got)
            found.add(expected, got)
            if logits is not None and expected[logits].ndim > 1 and expected[logits].shape[1] > 1:
                agreed.append((expected[logits].argmax(1) == got[logits].argmax(1)).ravel())
    relative = found.relative
    if not relative <= tolerance:  # also when it is not a number
        raise CheckFailed(
            f"The exported model differs from the pruned one by {relative:.1e} of its largest output "
            f"({found.absolute:.1e} in absolute terms); {tolerance:.0e} is allowed."
            + _blame(model, inputs, relative)
        )
    in_sevens = agreed[BATCHES[-1] :]  # the single ones come first, and again here
    top1 = float(np.concatenate(in_sevens).mean()) if in_sevens else None
    return Parity(found.absolute, relative, top1)


def _blame(model: nn.Module, inputs: Inputs, relative: float) -> str:
    """What rounding alone does to the module, where it explains the difference."""
    few = select(inputs, slice(BATCHES[-1]))
    double = mapped(few, lambda x: x.double() if x.is_floating_point() else x)
    try:
        with on_cpu(model) as network, torch.no_grad():
            own = list(tensors_in(run(network, few)))
            exact = list(tensors_in(run(copied(network).double(), double)))
    except ForeignError:  # a forward that insists on single precision
        return ""
    noise = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(own, exact, strict=True))
    if not noise > relative / 10:
        return ""
    return f" PyTorch itself is {noise:.1e} off double precision: the network amplifies rounding."


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    """For each size in `BATCHES`: the first few samples one by one, then all of them in sevens."""
    single, full = BATCHES
    if count(inputs) < full:
        inputs = select(inputs, torch.arange(full) % count(inputs))
    for size, end in ((single, full), (full, count(inputs))):
        for start in range(0, end, size):
            yield select(inputs, slice(start, min(start + size, end)))


def _same_shapes(expected: list[Array], got: list[Array]) -> None:
    if (want := [x.shape for x in expected]) != (have := [x.shape for x in got]):
        raise CheckFailed(
            f"The exported model returns outputs of shape {have}; the pruned one returns {want}."
        )


def check_other_size(model: nn.Module, session: Session, samples: Inputs) -> tuple[int, int]:
    """Run an export that takes images of any size on one of another size, and compare it with the module.

    Returns
    -------
    tuple
        Height and width that were tried.

    Raises
    ------
    MintError
        The module, or the export, does not take that size.
    CheckFailed
        They say something else.
    """
    other = mapped(select(samples, slice(2)), _enlarged)
    height, width = next(x.shape[2:] for x in tensors(other) if x.ndim == IMAGES)
    remedy = f"does not take images of {height}x{width}. Leave out --dynamic-size."
    try:
        with on_cpu(model) as network, torch.no_grad():
            run(network, mapped(other, lambda x: x.detach().cpu()))
    except ForeignError as error:
        raise MintError(f"The network {remedy} ({first_line(error)})") from error
    try:
        check_parity(model, session, other, logits=None)
    except CheckFailed:
        raise
    except MintError as error:
        raise MintError(f"The export {remedy} ({first_line(error)})") from error
    return int(height), int(width)


def _enlarged(x: Tensor) -> Tensor:
    """Images that are larger, and not square where they were; whole blocks of 32, as networks halve them."""
    if x.ndim != IMAGES:
        return x
    height, width = x.shape[2:]
    return functional.interpolate(x, (height + LARGER[0], width + LARGER[1]), mode="bilinear")
