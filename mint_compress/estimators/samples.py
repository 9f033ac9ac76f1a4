"""What every estimator asks of its samples: paired rows, finite numbers, one label per column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError


@dataclass(frozen=True, eq=False)
class Samples:
    """Paired, standardised samples.

    Attributes
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)`` float64, each column with mean 0 and variance 1; a constant column
        is all zero.
    child_groups, parent_groups
        Columns of each group, ascending, on the CPU. Constant columns, which say nothing, are left
        out; a group may be empty.
    """

    children: Tensor
    parents: Tensor
    child_groups: list[Tensor]
    parent_groups: list[Tensor]

    @property
    def rows(self) -> int:
        return len(self.children)


def check_samples(
    children: Tensor, parents: Tensor, child_groups: Tensor | None, parent_groups: Tensor | None
) -> Samples:
    """Check and standardise the arguments of an estimator.

    Raises
    ------
    MintError
        Wrong shapes, NaN or infinite values, labels that do not fit.
    """
    for what, values in (("children", children), ("parents", parents)):
        if values.ndim != 2:
            raise MintError(f"{what} must be (rows, columns), not {tuple(values.shape)}.")
        if not bool(torch.isfinite(values).all()):
            raise MintError(f"{what} hold NaN or infinite values. Check the network and its input.")
    if len(children) != len(parents) or len(children) < 2:
        raise MintError(
            f"children have {len(children)} rows and parents {len(parents)}: "
            "give both sides of the same images, two or more."
        )
    x, y = _standardised(children.double()), _standardised(parents.double())
    return Samples(
        x, y, _columns("child_groups", child_groups, x), _columns("parent_groups", parent_groups, y)
    )


def check_share(name: str, value: float) -> None:
    """Refuse a share of a variance that is negative, infinite or NaN."""
    if not 0 <= value < float("inf"):
        raise MintError(f"{name} must be a finite number, at least 0, not {value!r}.")


def _standardised(values: Tensor) -> Tensor:
    constant = values.amax(0) == values.amin(0)
    centred = (values - values.mean(0)).masked_fill(constant, 0)
    return centred / centred.square().mean(0).sqrt().masked_fill(constant, 1)


def _columns(what: str, labels: Tensor | None, values: Tensor) -> list[Tensor]:
    """Columns of each group that vary at all."""
    width = values.shape[1]
    labels = torch.arange(width) if labels is None else torch.as_tensor(labels).cpu()
    if labels.shape != (width,) or labels.is_floating_point() or (width and int(labels.min()) < 0):
        raise MintError(f"{what} must be {width} whole numbers from 0 on, one per column.")
    varying = (values != 0).any(0).cpu()
    groups = int(labels.max()) + 1 if width else 0
    return [((labels == group) & varying).nonzero()[:, 0] for group in range(groups)]
