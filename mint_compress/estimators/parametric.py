"""The parametric estimate of conditional mutual information: as if samples were jointly Gaussian.

For a group of children y = W' x with parents x of precision K and residual covariance R, observation
noise included, a block p of parents has, given all other parents,

    I(y ; x_p | x_rest) = 1/2 logdet(1 + R^-1 w_p' K_pp^-1 w_p)      (nats)

It estimates how much there is, free of bias, with as little noise as keeps it finite. That is another
quantity than the score :func:`mint_compress.estimators.gaussian.gaussian`, which looks at each child by
itself through much noise, so that what parents say adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.copula import normal_scores
from mint_compress.estimators.memory import at_once
from mint_compress.estimators.products import (
    COARSE_PARENT,
    SINGULAR,
    column_products,
    common_type,
    correlations,
    with_itself,
)
from mint_compress.estimators.regression import cholesky
from mint_compress.estimators.samples import (
    Samples,
    check_samples,
    check_share,
    full_precision,
    mean_square,
)
from mint_compress.progress import Progress

COARSE_CHILD = 0.02
"""As COARSE_PARENT, of a child."""


def parametric(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    noise: float = 1e-2,
    ridge: float = 0.0,
    shrinkage: float | str = 0.0,
    copula: bool = False,
    correct: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """I(child group; parent group | all other parents) for all pairs, as if jointly Gaussian.

    All pairs come from one factorisation. The products of the samples are taken in their own type
    (float32 only if both are, and again in float64 where little of a variance is left), the rest
    in float64. Rescaling or shifting a column changes nothing.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row. Constant columns say nothing.
    child_groups, parent_groups
        ``(C,)`` and ``(d,)`` labels 0..Q-1 and 0..P-1; None: every column by itself.
    noise
        Observation noise as a share of each child's variance, added to its residual variance.
    ridge
        Added to each parent's variance, as a share of it. Duplicate parents, or more columns than
        rows, need one, or shrinkage.
    shrinkage
        Share, from 0 to 1, by which the correlations of children and parents alike are shrunk
        towards 0, or ``oas``: the share with the least expected error, estimated from the rows.
    copula
        Use the ranks only, as normal scores: no monotone map of a column changes anything, and
        outliers weigh little. See :func:`mint_compress.estimators.copula.normal_scores`.
    correct
        Subtract the bias of independent, jointly Gaussian rows, which is exact with ``noise=0``,
        ``ridge=0`` and without copula, and needs n > d + (columns of the widest child group). Noise
        is not estimated, so with it, where parents explain nearly all of a child, estimates are low
        by up to 1/2 log(n / (n - d)) per child column, much the same for every parent. With a copula
        the same is subtracted, which is right where rows are independent and child and parents
        have little to do with each other. With shrinkage nothing is subtracted: shrunk correlations
        do not have that bias but one of their own, towards 0.
    seed
        Part of the protocol; nothing is drawn.
    progress
        Called with ("parametric", pairs done, pairs in all).

    Returns
    -------
    Tensor
        ``(Q, P)`` float64 nats. Corrected estimates of 0 scatter around 0.

    Raises
    ------
    MintError
        NaN or infinite values, shapes and labels that do not fit; parents (without ridge or
        shrinkage) or children (without noise) that others determine; too few rows for the correction.

    References
    ----------
    N. Misra, H. Singh, E. Demchuk, "Estimation of the entropy of a multivariate normal
    distribution", Journal of Multivariate Analysis 92(2), 2005 (the correction).
    Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance
    estimation", IEEE Transactions on Signal Processing 58(10), 2010, eq. 23 (``oas``).
    """
    check_share("noise", noise)
    check_share("ridge", ridge)
    dtype = common_type(children, parents)
    if copula:
        children, parents = normal_scores("children", children), normal_scores("parents", parents)
    samples = check_samples(children, parents, child_groups, parent_groups, dtype=dtype)
    if correct and shrinkage == 0:
        _check_rows(samples)
    fit = fit_parents(samples, noise=noise, ridge=ridge, shrinkage=shrinkage)
    return _all_pairs(samples, fit, correct and shrinkage == 0, progress)


@dataclass(frozen=True, eq=False)
class Fit:
    """Least squares of the standardised children on all standardised parents.

    Attributes
    ----------
    children
        ``(n, C)`` the samples.
    cross
        ``(d, C)`` covariance of parents and children; shrunk.
    precision
        ``(d, d)`` inverse of the parents' covariance, ridge included. A constant parent stands apart.
    weight
        ``(d, C)``: ``precision @ cross``.
    residual
        ``(C,)`` what all parents together leave of each child's variance, noise included; 1 for a
        constant child.
    shrinkage
        The share by which correlations were shrunk.
    """

    children: Tensor
    cross: Tensor
    precision: Tensor
    weight: Tensor
    residual: Tensor
    shrinkage: float

    @property
    def least_of_parents(self) -> float:
        """The least share of its variance that the others leave of a parent; 0 at worst."""
        return _least(self.precision.diagonal().reciprocal())

    @property
    def least_of_children(self) -> float:
        """The least share of its variance that is left of a child, noise included; 0 at worst."""
        return _least(self.residual)

    def whitening(self, groups: Tensor) -> Tensor:
        """``(Q, a, a)`` inverse Cholesky factors of the residual covariance of child groups ``(Q, a)``."""
        if groups.shape[1] == 1:
            return self.residual[groups].rsqrt()[:, :, None]
        rows = self.children.T.contiguous()[groups]
        with full_precision():
            among = (rows @ rows.mT).double() * ((1 - self.shrinkage) / len(self.children))
        among -= self.cross.T[groups] @ self.weight.T[groups].mT
        among.diagonal(dim1=1, dim2=2).copy_(self.residual[groups])
        return _inverse_factor(among, "of a child group")

    def nats(self, parents: Tensor, children: Tensor, whiten: Tensor) -> Tensor:
        """``(Q, P)`` plug-in nats of parent groups ``(P, b)`` and whitened child groups ``(Q, a)``."""
        (a, b) = children.shape[1], parents.shape[1]
        if a == b == 1:  # by far the most frequent; in place, as new memory costs more than arithmetic
            share = self.weight.T.index_select(0, children[:, 0]).index_select(1, parents[:, 0])
            share.square_().div_(self.precision.diagonal()[parents[:, 0]]).mul_(whiten[:, 0].square())
            return share.log1p_().mul_(0.5)
        own = self.precision[parents[:, :, None], parents[:, None, :]]
        # (P, b, C); its products over b are w_p' K_pp^-1 w_p
        reach = _inverse_factor(own, "of a parent group") @ self.weight[parents]
        if a == 1:
            share = reach.square().sum(1).T.contiguous()[children[:, 0]]
            return share.mul_(whiten[:, 0].square()).log1p_().mul_(0.5)
        signal = reach[:, :, children].permute(2, 0, 1, 3).flatten(1, 2) @ whiten.mT
        if b == 1:
            return signal.square().sum(2).log1p_().mul_(0.5)
        signal = signal.unflatten(1, parents.shape)  # (Q, P, b, a)
        inner = signal.mT @ signal if a < b else signal @ signal.mT
        inner.diagonal(dim1=2, dim2=3).add_(1)
        return cholesky(inner, "of a pair").diagonal(dim1=2, dim2=3).log().sum(2)


def _least(values: Tensor) -> float:
    return max(0.0, float(values.nan_to_num(0).min())) if len(values) else 1.0


def _inverse_factor(matrix: Tensor, whose: str) -> Tensor:
    """Inverse of the lower Cholesky factor of ``(..., m, m)``."""
    factor = cholesky(matrix, whose)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return inverse


def fit_parents(samples: Samples, *, noise: float, ridge: float, shrinkage: float | str = 0.0) -> Fit:
    """Regress all children on all parents; see :func:`parametric` for the parameters and errors."""
    if not (shrinkage == "oas" or (isinstance(shrinkage, int | float) and 0 <= shrinkage <= 1)):
        raise MintError(f"shrinkage must be a number from 0 to 1, or 'oas', not {shrinkage!r}.")
    fit = _fit(samples, samples.parents.dtype, noise, ridge, shrinkage)
    if samples.parents.dtype == torch.float32 and (
        fit.least_of_parents < COARSE_PARENT or fit.least_of_children < COARSE_CHILD
    ):
        fit = _fit(samples, torch.float64, noise, ridge, shrinkage)
    if fit.least_of_parents <= SINGULAR:
        raise MintError(
            f"The covariance of {sum(map(len, samples.parent_groups))} parents over {samples.rows} rows "
            f"(ridge {ridge:g}) is singular. Use more samples, or a larger ridge."
        )
    if fit.least_of_children <= SINGULAR:
        raise MintError("A child is determined by its parents. Give it an observation noise, such as 1e-2.")
    return fit


def _fit(samples: Samples, dtype: torch.dtype, noise: float, ridge: float, shrinkage: float | str) -> Fit:
    x = samples.children.to(dtype)
    covariance, cross = correlations(samples, dtype)
    share = _oas(covariance, cross, x) if isinstance(shrinkage, str) else float(shrinkage)
    constant = covariance.diagonal() == 0
    if share:
        covariance, cross = covariance * (1 - share), cross * (1 - share)
    covariance.diagonal().add_(share + ridge).masked_fill_(constant, 1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    singular = bool(failed)
    precision = torch.full_like(factor, math.inf) if singular else torch.cholesky_inverse(factor)
    weight = precision @ cross
    own = mean_square(x).double()
    residual = own.lerp(torch.ones_like(own), share) + noise - column_products(cross, weight)
    return Fit(x, cross, precision, weight, residual.masked_fill_(own == 0, 1), share)


def _oas(covariance: Tensor, cross: Tensor, children: Tensor) -> float:
    """The shrinkage of the joint correlation matrix with the least expected error (eq. 23)."""
    rows = len(children)
    with full_precision():
        among = with_itself(children).double() / rows
    size = int((covariance.diagonal() > 0).sum() + (among.diagonal() > 0).sum())
    if size < 2:
        return 0.0
    squares = float(covariance.square().sum() + 2 * cross.square().sum() + among.square().sum())
    above = (1 - 2 / size) * squares + size**2
    below = (rows + 1 - 2 / size) * (squares - size)
    return 1.0 if above >= below else above / below


def _all_pairs(samples: Samples, fit: Fit, correct: bool, progress: Progress | None) -> Tensor:
    device = fit.weight.device
    out = fit.weight.new_zeros(len(samples.child_groups), len(samples.parent_groups))
    columns = sum(map(len, samples.parent_groups))
    done = 0
    for q, child in _by_width(samples.child_groups, device):
        whiten = fit.whitening(child)
        for p, parent in _by_width(samples.parent_groups, device):
            (count, a), b = child.shape, parent.shape[1]
            bias = _bias(samples.rows - 1 - (columns - b), a, b) if correct else 0.0
            memory = 8 * (2 * b * len(fit.residual) + 3 * count * (a * b + min(a, b) ** 2 + 1))
            size = at_once(memory, device)
            for into, some in zip(p.split(size), parent.split(size), strict=True):
                nats = fit.nats(some, child, whiten).sub_(bias)
                # whole rows at once are several times as fast
                out[q if len(into) == out.shape[1] else (q[:, None], into)] = nats
                done += count * len(into)
                if progress:
                    progress("parametric", done, out.numel())
    if progress and done < out.numel():  # groups without columns are done without work
        progress("parametric", out.numel(), out.numel())
    return out


def _by_width(groups: list[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers ``(Q,)`` and columns ``(Q, a)`` of the groups of each width that occurs."""
    for width in sorted({len(g) for g in groups} - {0}):
        those = [i for i, g in enumerate(groups) if len(g) == width]
        yield torch.tensor(those, device=device), torch.stack([groups[i] for i in those]).to(device)


def _check_rows(samples: Samples) -> None:
    columns = sum(map(len, samples.parent_groups))
    free = samples.rows - columns - max(map(len, samples.child_groups), default=0)
    if columns and free < 1:
        raise MintError(
            f"{samples.rows} rows are too few for {columns} parent columns: the bias correction "
            f"needs {samples.rows + 1 - free}. Draw more samples, or pass correct=False and a ridge."
        )


def _bias(freedom: int, a: int, b: int) -> float:
    """What the plug-in estimate is too large by: a Wishart determinant's mean log, twice."""
    i = torch.arange(a, dtype=torch.float64)
    return float(0.5 * (torch.digamma((freedom - i) / 2) - torch.digamma((freedom - b - i) / 2)).sum())
