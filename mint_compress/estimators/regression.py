"""What ``gaussian`` means: the information that parents have about noisy children, from second moments.

A child y = w' x + e has parents x of covariance S, and e is what they leave unexplained. It is observed with
noise of variance n, so that r = n + Var e is what stays unknown when all parents are known. Then a block p of
parents has, with K the inverse of S and all other parents given,

    I(y ; x_p | x_rest) = 1/2 log(1 + w_p' K_pp^-1 w_p / r)      (nats)

whose inner quadratic form is the saliency of Optimal Brain Surgeon (Hassibi and Stork, 1993). A block is
removed exactly by the Schur complement: K and W of what is left are down-dated, W is then the least-squares
refit on the remaining parents, and what was lost is added to r.

Children count each by itself. The command gives :func:`regression` the moments of a layer's inputs and the
layer's weights; :mod:`mint_compress.estimators.gaussian` forms the same from samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError

NOISE = 10.0
"""Observation noise on every child, as a multiple of its variance.

With little noise information saturates: a child that has lost half is cheap to lose whole, and one
global threshold then empties some layers. With much, nats add up like shares of explained variance.
ResNet-20 without training: benchmarks/without_training.py.
"""
RIDGE = 1e-3
"""Added to every parent's variance, as a share of the mean of the variances: copies of a parent need it."""
LEAST_IMPORTANCE = 1e-6
"""Of a child, as a share of the most important one's."""
LEAST_VARIANCE = 1e-3
"""Of a child, as a share of the mean of the variances: a dead child says nothing, at no price."""
TINY = 1e-30
"""In the place of a variance that is 0, where it is divided by."""
COMPACT_BELOW = 0.75
"""Share of the columns that are left at which a problem's matrices are made smaller."""


@dataclass
class Regression:
    """One linear map whose inputs compete: children given by parents, through second moments.

    Attributes
    ----------
    precision
        ``(d, d)`` inverse of the parents' (ridged) covariance.
    weight
        ``(d, C)`` the map; after eliminations, its refit on the parents that are left.
    blocks
        ``(U, m)`` columns of each unit, padded with -1; units without columns here are all -1.
    noise
        ``(C,)`` variance that is not explained by any parent: observation noise, what parents never
        explained, and what has been lost so far.
    scale
        What this problem's information counts for in a sum over problems.
    """

    precision: Tensor
    weight: Tensor
    blocks: Tensor
    noise: Tensor
    scale: float = 1.0

    def losses(self, units: Tensor) -> Tensor:
        """Variance each child would lose with each unit, ``(len(units), C)``."""
        columns = self.blocks[units]
        width = columns.shape[1]
        if not len(self.precision):  # none of the units is read here
            return self.weight.new_zeros(len(units), self.weight.shape[1])
        present = columns >= 0
        if width == 1 and bool(present.all()):  # a linear layer: nothing to invert
            own = self.precision[columns, columns]
            _check_positive(own, "of the parents that are left")
            return self.weight[columns[:, 0]].square_().div_(own)
        safe = columns.clamp_min(0)
        precision = self.precision[safe[:, :, None], safe[:, None, :]]
        both = present[:, :, None] & present[:, None, :]
        eye = torch.eye(width, dtype=precision.dtype, device=precision.device)
        precision = torch.where(both, precision, eye)  # padding stands apart and weighs nothing
        weight = self.weight[safe] * present[:, :, None]
        factor = cholesky(precision, "of the parents that are left")
        # the blocks are small and the children many: invert the one, multiply with the other
        inverse: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        return (inverse @ weight).square().sum(1)

    def nats(self, units: Tensor) -> Tensor:
        """What each unit says about each child, all other units being given, ``(len(units), C)``."""
        return self.losses(units).div_(self.noise).log1p_().mul_(0.5)

    def remove(self, units: Tensor) -> None:
        """Take the units' columns out: down-date precision, weight and noise, in place."""
        gone = self.blocks[units].flatten()
        gone = gone[gone >= 0]
        if not len(gone):
            return
        factor = cholesky(self.precision[gone][:, gone], "of the parents that go")
        reach = torch.linalg.solve_triangular(factor, self.precision[gone], upper=False)
        share = torch.linalg.solve_triangular(factor, self.weight[gone], upper=False)
        self.noise = self.noise + share.square().sum(0)
        self.weight.addmm_(reach.T, share, alpha=-1)
        self.precision.addmm_(reach.T, reach, alpha=-1)
        self.weight[gone] = 0
        self.precision[gone] = 0
        self.precision[:, gone] = 0

    def compact_(self, left: Tensor) -> None:
        """Drop the rows and columns of units that are not ``left``, once enough are gone."""
        if not len(self.precision):  # all that is read here has gone already
            return
        stays = torch.ones(len(self.precision), dtype=torch.bool, device=left.device)
        stays[self.blocks[self.blocks >= 0]] = False
        mine = self.blocks[left]
        stays[mine[mine >= 0]] = True
        kept = stays.nonzero()[:, 0]
        if len(kept) > COMPACT_BELOW * len(stays):
            return
        place = torch.full((len(stays),), -1, device=left.device)
        place[kept] = torch.arange(len(kept), device=left.device)
        blocks = torch.full_like(self.blocks, -1)
        blocks[left] = torch.where(mine >= 0, place[mine.clamp_min(0)], -1)
        self.precision = self.precision[kept][:, kept]
        self.weight, self.blocks = self.weight[kept], blocks

    def restricted(self, units: Tensor) -> Regression:
        """The same problem as far as these units see it: exact for removals among themselves."""
        columns = self.blocks[units]
        kept = columns[columns >= 0]
        blocks = torch.full_like(columns, -1)
        blocks[columns >= 0] = torch.arange(len(kept), device=kept.device)
        precision, weight = self.precision[kept][:, kept], self.weight[kept]
        return Regression(precision, weight, blocks, self.noise.clone(), self.scale)


def regression(
    covariance: Tensor,
    weight: Tensor,
    column_units: Tensor,
    units: int,
    *,
    unexplained: Tensor | float = 0.0,
    noise: float = NOISE,
    ridge: float = RIDGE,
    importance: Tensor | None = None,
    scale: float = 1.0,
) -> Regression:
    """Set up one problem from second moments.

    Parameters
    ----------
    covariance
        ``(d, d)`` of the parents.
    weight
        ``(d, C)`` map from parents to children.
    column_units
        ``(d,)`` unit of each column, -1 for parents that stay.
    units
        Number of units.
    unexplained
        ``(C,)`` variance of each child that the map leaves; 0: parents determine their children.
    noise
        Observation noise as a share of each child's variance: a child that its parents determine
        would otherwise carry infinite information.
    ridge
        Added to the diagonal, as a share of its mean.
    importance
        ``(C,)`` what a unit of variance in each child counts for. The children's noise is then as large
        as costs the same in each of them, and as much as ``noise`` of their variances on average.
    scale
        See :class:`Regression`; 1 / C makes the sum over children a mean.

    Raises
    ------
    MintError
        NaN or infinite moments, a noise of 0, or a covariance that is singular even with the ridge.
    """
    if not bool(torch.isfinite(covariance).all() and torch.isfinite(weight).all()):
        raise MintError("The second moments hold NaN or infinite values. Check the network and its input.")
    if not noise > 0:
        raise MintError(f"noise must be positive, not {noise!r}: parents determine their children here.")
    matrix = ridged(covariance, ridge)
    precision = torch.cholesky_inverse(cholesky(matrix, f"of {len(matrix)} parents (ridge {ridge:g})"))
    variance = ((covariance @ weight) * weight).sum(0) + unexplained
    remaining = noise * _shared_out(variance, importance) + unexplained
    return Regression(precision, weight.clone(), unit_columns(column_units, units), remaining, scale)


def ridged(covariance: Tensor, ridge: float) -> Tensor:
    """``(d, d)`` covariance with the ridge; a parent without any variance stands apart and weighs nothing."""
    scale = covariance.diagonal().mean().clamp_min(TINY)
    out = covariance.clone()
    diagonal = out.diagonal()
    diagonal.add_(ridge * scale)
    diagonal.masked_fill_(diagonal == 0, TINY * scale)
    return out


def _shared_out(variance: Tensor, importance: Tensor | None) -> Tensor:
    """``(C,)`` the children's noise for a share of 1; see :func:`regression`."""
    observed = variance.clamp_min(LEAST_VARIANCE * variance.mean().clamp_min(TINY))
    if importance is None:
        return observed
    counts = importance.clamp_min(LEAST_IMPORTANCE * importance.max())
    return (counts * observed).mean() / counts


def cholesky(matrix: Tensor, whose: str) -> Tensor:
    """Lower factor of ``(..., d, d)``; an error that says ``whose`` covariance is singular."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    _check_positive(1 - failed, whose)
    return factor


def _check_positive(values: Tensor, whose: str) -> None:
    if not bool((values > 0).all()):
        raise MintError(f"The covariance {whose} is singular. Use more samples, or a larger ridge.")


def unit_columns(column_units: Tensor, units: int) -> Tensor:
    """``(units, m)`` columns of every unit, ascending, padded with -1; see :func:`regression`."""
    owned = column_units >= 0
    columns = owned.nonzero()[:, 0]
    owner = column_units[columns]
    order = torch.argsort(owner, stable=True)
    columns, owner = columns[order], owner[order]
    counts = torch.bincount(owner, minlength=units)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(columns), device=columns.device) - starts[owner]
    blocks = torch.full((units, int(counts.max()) if units else 0), -1, device=columns.device)
    blocks[owner, place] = columns
    return blocks


def information(problems: Sequence[Regression], units: Tensor) -> Tensor:
    """Nats each unit alone carries about the children of all problems, given everything else."""
    total = torch.zeros(len(units), dtype=torch.float64, device=units.device)
    for problem in problems:
        read = (problem.blocks[units] >= 0).any(1)  # of the others nothing is read here, and nothing lost
        total[read] += problem.scale * problem.nats(units[read]).sum(1)
    return total
