"""``gaussian`` on samples: the second moments that :mod:`mint_compress.estimators.regression` takes.

The map from parents to children is least squares. Where children are a linear map of their parents, as the
outputs of a layer are, that is the layer's own, so that the scores are those which the command computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.products import (
    COARSE_PARENT,
    SINGULAR,
    column_products,
    common_type,
    correlations,
)
from mint_compress.estimators.regression import NOISE, RIDGE, Regression, regression
from mint_compress.estimators.samples import Samples, check_samples, check_share
from mint_compress.progress import Progress


def gaussian(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    noise: float = NOISE,
    ridge: float = RIDGE,
    importance: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """What each parent group says about the noisy children of each group, all other parents being given.

    Every child counts by itself, ``1/2 log(1 + w_p' K_pp^-1 w_p / r)``, see
    :mod:`mint_compress.estimators.regression`: what the command scores by, before it takes the mean over a
    layer's children. :func:`mint_compress.estimators.parametric.parametric` estimates the conditional mutual
    information of the samples themselves.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row. Constant columns say nothing.
    child_groups, parent_groups
        ``(C,)`` and ``(d,)`` labels 0..Q-1 and 0..P-1; None: every column by itself.
    noise
        Observation noise as a share of each child's variance.
    ridge
        Added to each parent's variance, as a share of the mean of the variances. Where parents determine
        one another, there must be one; of the maps that fit alike, the shortest is taken then.
    importance
        ``(C,)`` what a unit of variance in each child counts for; it shares the noise out.
    seed
        Part of the protocol; nothing is drawn.
    progress
        Called once with ("gaussian", pairs in all, pairs in all).

    Returns
    -------
    Tensor
        ``(Q, P)`` float64 nats, summed over the children of a group. Nothing is corrected for bias.

    Raises
    ------
    MintError
        NaN or infinite values, shapes and labels that do not fit, a noise of 0; without a ridge, parents
        that others determine.
    """
    samples = check_samples(
        children, parents, child_groups, parent_groups, dtype=common_type(children, parents)
    )
    problem = least_squares(samples).problem(noise=noise, ridge=ridge, importance=importance)
    nats = problem.nats(torch.arange(len(samples.parent_groups), device=problem.weight.device))
    columns, owner = _labelled(samples.child_groups)
    out = nats.new_zeros(len(samples.child_groups), len(samples.parent_groups))
    out.index_add_(0, owner.to(nats.device), nats.T[columns.to(nats.device)])
    if progress:
        progress("gaussian", out.numel(), out.numel())
    return out


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Children as a linear map of their parents, in the units of the samples, and what it leaves.

    Attributes
    ----------
    samples
        What was fitted.
    covariance
        ``(d, d)`` of the parents.
    weight
        ``(d, C)``; 0 for constant parents.
    unexplained
        ``(C,)`` variance that is left of each child.
    unique
        Whether no parent is determined by others; else it is the shortest map on standardised parents.
    """

    samples: Samples
    covariance: Tensor
    weight: Tensor
    unexplained: Tensor
    unique: bool

    def problem(
        self, *, noise: float, ridge: float, importance: Tensor | None = None, scale: float = 1.0
    ) -> Regression:
        """What these moments are to :func:`mint_compress.estimators.regression.regression`."""
        check_share("noise", noise)
        check_share("ridge", ridge)
        groups = self.samples.parent_groups
        if not (self.unique or ridge):
            raise MintError(
                f"The covariance of {sum(map(len, groups))} parents over {self.samples.rows} rows "
                f"(ridge {ridge:g}) is singular. Use more samples, or a larger ridge."
            )
        columns, owner = _labelled(groups)
        column_units = torch.full((len(self.weight),), -1)  # constant columns belong to nobody
        column_units[columns] = owner
        return regression(
            self.covariance, self.weight, column_units.to(self.weight.device), len(groups),
            unexplained=self.unexplained, noise=noise, ridge=ridge, importance=importance, scale=scale,
        )  # fmt: skip


def least_squares(samples: Samples) -> LeastSquares:
    """Regress all children on all parents; float32 samples are multiplied as such where that suffices."""
    correlation, cross = correlations(samples, samples.parents.dtype)
    factor, left = _factor(correlation)
    if samples.parents.dtype == torch.float32 and left < COARSE_PARENT:
        correlation, cross = correlations(samples, torch.float64)
        factor, left = _factor(correlation)
    unique = left > SINGULAR
    if unique:
        weight = torch.cholesky_solve(cross, factor)
    else:
        weight = torch.linalg.pinv(correlation, hermitian=True, rtol=SINGULAR) @ cross
    own, deviation = samples.parent_units[1], samples.child_units[1]
    share = (deviation > 0).double().sub_(column_products(cross, weight)).clamp_min_(0)
    return LeastSquares(
        samples,
        correlation.mul_(own).mul_(own[:, None]),
        weight.mul_(deviation).div_(own.masked_fill(own == 0, 1)[:, None]),
        share * deviation.square(),
        unique,
    )


def _factor(correlation: Tensor) -> tuple[Tensor, float]:
    """Cholesky factor, and the least share of its variance that the parents before it leave of one."""
    constant = correlation.diagonal() == 0
    matrix = correlation.clone()
    matrix.diagonal().masked_fill_(constant, 1)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return factor, 0.0
    return factor, float(factor.diagonal().square().min()) if len(factor) else 1.0


def _labelled(groups: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The columns of all groups, and the group of each."""
    sizes = torch.tensor([len(g) for g in groups], dtype=torch.long)
    columns = torch.cat([torch.zeros(0, dtype=torch.long), *groups])
    return columns, torch.arange(len(groups)).repeat_interleave(sizes)
