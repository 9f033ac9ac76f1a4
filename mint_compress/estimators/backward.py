"""Backward elimination on samples: which parents a layer can do without, one after the other.

:func:`mint_compress.estimators.gaussian.gaussian` scores every parent with all others given, so that
two copies of one channel both look dispensable. Here the cheapest goes, the others take over what it
did, and the next is chosen among what is left; :mod:`mint_compress.estimators.elimination` has the
algebra.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.elimination import Regression, cholesky, eliminate, unit_columns
from mint_compress.estimators.gaussian import Fit, common_type, fit_parents
from mint_compress.estimators.samples import Samples, check_samples, check_share
from mint_compress.progress import Progress


@dataclass(frozen=True, eq=False)
class Elimination:
    """In which order parents go, what it costs, and the maps that are left.

    Attributes
    ----------
    order
        ``(P - keep,)`` int64 numbers of the parent groups, first removed first.
    loss
        ``(P - keep,)`` float64: nats lost at each step, summed over the children. With everything
        removed they add up to what all parents together say about each child.
    groups
        Columns of each parent group; constant columns, which say nothing, are left out.
    """

    order: Tensor
    loss: Tensor
    groups: list[Tensor] = field(repr=False)
    _fit: Fit = field(repr=False)
    _parent_units: Tensor = field(repr=False)
    _child_units: Tensor = field(repr=False)

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
        left = left.to(self._fit.cross.device)
        weight = torch.zeros_like(self._fit.cross)
        factor = cholesky(self._fit.covariance[left][:, left], "of the parents that are left")
        weight[left] = torch.cholesky_solve(self._fit.cross[left], factor)
        (mean, scale), (child_mean, child_scale) = self._parent_units, self._child_units
        weight[left] *= child_scale / scale[left, None]
        return weight, child_mean - mean @ weight


def backward_elimination(
    children: Tensor,
    parents: Tensor,
    *,
    parent_groups: Tensor | None = None,
    noise: float = 1e-2,
    ridge: float = 1e-3,
    keep: int = 0,
    progress: Progress | None = None,
) -> Elimination:
    """Remove parent groups one by one, always the one that the children lose least by.

    A group's price is I(child; group | the other parents that are left), as if jointly Gaussian,
    summed over the children, each by itself. Up to 1200 columns that is exact; wider problems
    remove several groups between two updates, see :func:`mint_compress.estimators.elimination.eliminate`.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row. Constant columns say nothing, and parents of
        which that is all go first.
    parent_groups
        ``(d,)`` labels 0..P-1; None: every column by itself.
    noise
        Observation noise as a share of each child's variance: what its parents do not explain has
        that much added, so that a child they determine does not carry infinite information.
    ridge
        Added to each parent's variance, as a share of it. Duplicate parents, or more columns than
        rows, need one.
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
    check_share("noise", noise)
    check_share("ridge", ridge)
    samples = check_samples(children, parents, None, parent_groups, dtype=common_type(children, parents))
    count = len(samples.parent_groups)
    if not 0 <= keep <= count:
        raise MintError(f"keep must be from 0 to the number of parent groups, {count}, not {keep!r}.")
    fit = fit_parents(samples, noise=noise, ridge=ridge)

    def step(removed: int) -> None:
        if progress:
            progress("backward", removed, count - keep)

    problem = _problem(samples, fit)
    empty = problem.noise.new_zeros(0)
    order, loss = eliminate([problem], count, keep=keep, step=step) if keep < count else (empty.long(), empty)
    units = [_units(*side) for side in ((parents, samples.parents), (children, samples.children))]
    return Elimination(order, loss, samples.parent_groups, fit, *units)


def _problem(samples: Samples, fit: Fit) -> Regression:
    owner = torch.full((samples.parents.shape[1],), -1)  # constant columns belong to nobody
    for unit, columns in enumerate(samples.parent_groups):
        owner[columns] = unit
    blocks = unit_columns(owner, len(samples.parent_groups)).to(fit.weight.device)
    # eliminate works in place
    return Regression(fit.precision.clone(), fit.weight.clone(), blocks, fit.residual)


def _units(given: Tensor, standardised: Tensor) -> Tensor:
    """``(2, columns)`` mean and standard deviation of the columns as they were given."""
    given = given.detach().double()
    mean = given.mean(0)
    return torch.stack([mean, ((given - mean) * standardised).mean(0)])
