"""Backward elimination on samples: which parents a layer can do without, one after the other.

The prices are those of :func:`mint_compress.estimators.gaussian.gaussian`, as the mean over the children, and
the steps those of :func:`mint_compress.estimators.elimination.eliminate`: what the command does with moments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.elimination import eliminate
from mint_compress.estimators.gaussian import LeastSquares, least_squares
from mint_compress.estimators.products import common_type
from mint_compress.estimators.regression import NOISE, RIDGE, cholesky, ridged
from mint_compress.estimators.samples import check_samples
from mint_compress.progress import Progress


@dataclass(frozen=True, eq=False)
class Elimination:
    """In which order parents go, what it costs, and the maps that are left.

    Attributes
    ----------
    order
        ``(P - keep,)`` int64 numbers of the parent groups, first removed first.
    loss
        ``(P - keep,)`` float64: nats lost at each step, as the mean over the children. With everything
        removed they add up to what all parents together say about a child, on average.
    groups
        Columns of each parent group; constant columns, which say nothing, are left out.
    """

    order: Tensor
    loss: Tensor
    groups: list[Tensor] = field(repr=False)
    _fit: LeastSquares = field(repr=False)
    _ridge: float = field(repr=False)

    def weights(self, removed: int) -> tuple[Tensor, Tensor]:
        """The refitted map from the parents that are left: least squares, with the ridge.

        Parameters
        ----------
        removed
            How many groups have gone: 0 to ``len(order)``.

        Returns
        -------
        weight : Tensor
            ``(d, C)`` float64 in the units of the samples; zero for the parents that have gone.
        intercept : Tensor
            ``(C,)`` float64: ``parents @ weight + intercept`` predicts the children.

        Raises
        ------
        MintError
            There is no such step.
        """
        if not 0 <= removed <= len(self.order):
            raise MintError(f"removed must be from 0 to {len(self.order)}, not {removed!r}.")
        gone = set(self.order[:removed].tolist())
        empty = torch.zeros(0, dtype=torch.long)
        left = torch.cat([empty, *(g for i, g in enumerate(self.groups) if i not in gone)])
        left = left.to(self._fit.weight.device)
        covariance = ridged(self._fit.covariance, self._ridge)[left]
        weight = torch.zeros_like(self._fit.weight)
        factor = cholesky(covariance[:, left], "of the parents that are left")
        weight[left] = torch.cholesky_solve(covariance @ self._fit.weight, factor)
        samples = self._fit.samples
        return weight, samples.child_units[0] - samples.parent_units[0] @ weight


def backward_elimination(
    children: Tensor,
    parents: Tensor,
    *,
    parent_groups: Tensor | None = None,
    noise: float = NOISE,
    ridge: float = RIDGE,
    importance: Tensor | None = None,
    keep: int = 0,
    progress: Progress | None = None,
) -> Elimination:
    """Remove parent groups one by one, always the one that the children lose least by.

    A group's price is what it says about each child, given the other parents that are left, as the mean
    over the children. Up to 127 groups of 1200 columns that is exact; larger problems remove several between
    two updates, see :func:`mint_compress.estimators.elimination.eliminate`.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row. Constant columns say nothing, and parents of
        which that is all go first.
    parent_groups
        ``(d,)`` labels 0..P-1; None: every column by itself.
    noise, ridge, importance
        See :func:`mint_compress.estimators.gaussian.gaussian`.
    keep
        Number of groups that stay.
    progress
        Called with ("backward", groups removed, groups to remove).

    Returns
    -------
    Elimination
        The order, the loss at each step, and the refitted map at every step. Nothing is corrected
        for bias.

    Raises
    ------
    MintError
        As in :func:`mint_compress.estimators.gaussian.gaussian`, or more groups to keep than there are.
    """
    samples = check_samples(children, parents, None, parent_groups, dtype=common_type(children, parents))
    count = len(samples.parent_groups)
    if not 0 <= keep <= count:
        raise MintError(f"keep must be from 0 to the number of parent groups, {count}, not {keep!r}.")
    fit = least_squares(samples)
    scale = 1 / max(1, children.shape[1])
    problem = fit.problem(noise=noise, ridge=ridge, importance=importance, scale=scale)

    def step(removed: int) -> None:
        if progress:
            progress("backward", removed, count - keep)

    order, loss = eliminate([problem], count, keep=keep, step=step)
    return Elimination(order, loss, samples.parent_groups, fit, ridge)
