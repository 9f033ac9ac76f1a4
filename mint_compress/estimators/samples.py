"""What every estimator asks of its samples: paired rows, finite numbers, one label per column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError

CACHE = 2**19
"""Bytes of samples that are worked on at once on a CPU."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Paired, standardised samples.

    Attributes
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, each column with mean 0 and variance 1; a constant column is all
        zero.
    child_units, parent_units
        ``(2, C)`` and ``(2, d)`` float64: mean and standard deviation of the columns as they were given.
    child_groups, parent_groups
        Columns of each group, ascending, on the CPU. Constant columns, which say nothing, are left
        out; a group may be empty.
    """

    children: Tensor
    parents: Tensor
    child_units: Tensor
    parent_units: Tensor
    child_groups: list[Tensor]
    parent_groups: list[Tensor]

    @property
    def rows(self) -> int:
        return len(self.children)


def check_samples(
    children: Tensor,
    parents: Tensor,
    child_groups: Tensor | None,
    parent_groups: Tensor | None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Samples:
    """Check and standardise the arguments of an estimator.

    Parameters
    ----------
    dtype
        Of the standardised samples: float64 or float32.

    Raises
    ------
    MintError
        Wrong shapes, NaN or infinite values, labels that do not fit.
    """
    for what, values in (("children", children), ("parents", parents)):
        if values.ndim != 2:
            raise MintError(f"{what} must be (rows, columns), not {tuple(values.shape)}.")
    if len(children) != len(parents) or len(children) < 2:
        raise MintError(
            f"children have {len(children)} rows and parents {len(parents)}: "
            "give both sides of the same images, two or more."
        )
    x, units_x = _standardised("children", children, dtype)
    y, units_y = _standardised("parents", parents, dtype)
    return Samples(
        x,
        y,
        units_x,
        units_y,
        _columns("child_groups", child_groups, units_x[1] == 0),
        _columns("parent_groups", parent_groups, units_y[1] == 0),
    )


def check_share(name: str, value: float) -> None:
    """Refuse a share of a variance that is negative, infinite or NaN."""
    if not 0 <= value < float("inf"):
        raise MintError(f"{name} must be a finite number, at least 0, not {value!r}.")


def check_finite(what: str, values: Tensor) -> None:
    """Refuse NaN and infinite values."""
    if not bool(torch.isfinite(values).all()):
        raise MintError(f"{what} hold NaN or infinite values. Check the network and its input.")


def with_noise(child: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Standardised children with Gaussian observation noise of variance ``noise``; constant ones stay so."""
    drawn = torch.randn(child.shape, generator=generator, dtype=child.dtype).to(child.device)
    return child + drawn * math.sqrt(noise) * child.any(0)


def mean_square(values: Tensor) -> Tensor:
    """``(columns,)`` mean square, some rows at a time: squares that stay in the cache cost nothing."""
    return torch.stack([rows.square().sum(0) for rows in values.split(_strip(values))]).sum(0) / len(values)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices in float32, whatever the caller allows; afterwards as before.

    TF32 and bfloat16 products have three digits: too few for what is left of a variance.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


def _standardised(what: str, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The columns with mean 0 and variance 1, and their ``(2, columns)`` means and standard deviations.

    A constant column has a deviation of exactly 0. One whose variance cannot be told from rounding, or is
    no number, is looked at more closely.
    """
    given, values = values, values.detach().to(dtype)
    mean = values.mean(0)
    out = torch.empty_like(values)
    drift, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    for rows, centred in zip(values.split(_strip(values)), out.split(_strip(values)), strict=True):
        torch.sub(rows, mean, out=centred)
        drift += centred.sum(0)  # the mean was rounded, which shows where it is large
        squares += centred.square().sum(0)
    drift /= len(values)
    variance = squares / len(values) - drift.square()
    number = torch.finfo(dtype)
    least = (number.eps * mean).square() + number.tiny**0.5  # smaller squares have lost digits
    plain = (variance > least) & torch.isfinite(variance)
    scale = variance.rsqrt()
    for rows in out.split(_strip(values)):
        rows.sub_(drift).mul_(scale)
    units = torch.stack([mean + drift, scale.reciprocal()]).double()
    if not bool(plain.all()):
        odd = (~plain).nonzero()[:, 0]
        check_finite(what, given[:, odd])
        out[:, odd], units[:, odd] = _extreme(given[:, odd].detach().double(), dtype)
    return out, units


def _strip(values: Tensor) -> int:
    """Number of rows to work on at once: on a CPU those that stay in its cache between two passes."""
    return max(1, CACHE // max(1, values[:1].nbytes) if values.device.type == "cpu" else len(values))


def _extreme(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Standardised columns of any finite size (all zero where constant), and their units."""
    constant = values.amax(0) == values.amin(0)
    size = values.abs().amax(0).masked_fill(constant, 1)
    middle = (values / size).mean(0)
    centred = (values / size - middle).masked_fill(constant, 0)
    spread = centred.abs().amax(0).masked_fill(constant, 1)
    centred = centred / spread
    drift = centred.mean(0)
    centred = (centred - drift).masked_fill(constant, 0)
    deviation = centred.square().mean(0).sqrt()
    mean = torch.where(constant, values[0], (middle + drift * spread) * size)
    units = torch.stack([mean, deviation * spread * size])
    return (centred / deviation.masked_fill(constant, 1)).to(dtype), units


def _columns(what: str, labels: Tensor | None, constant: Tensor) -> list[Tensor]:
    """Columns of each group that vary at all."""
    width = len(constant)
    labels = torch.arange(width) if labels is None else torch.as_tensor(labels).cpu()
    if labels.shape != (width,) or labels.is_floating_point() or (width and int(labels.min()) < 0):
        raise MintError(f"{what} must be {width} whole numbers from 0 on, one per column.")
    groups = int(labels.max()) + 1 if width else 0
    labels = labels.long()
    order = torch.argsort(labels, stable=True)
    order = order[~constant.cpu()[order]]
    sizes = torch.bincount(labels[order], minlength=groups).tolist() if width else []
    return list(order.split(sizes))
