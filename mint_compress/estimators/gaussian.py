"""Conditional mutual information of jointly Gaussian variables, from samples, in closed form.

For a group of children y = W' x with parents x of precision K and residual covariance R, observation
noise included, a block p of parents has, given all other parents,

    I(y ; x_p | x_rest) = 1/2 logdet(1 + R^-1 w_p' K_pp^-1 w_p)      (nats)

:mod:`mint_compress.estimators.elimination` has the form for second moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.counting import Progress
from mint_compress.errors import MintError
from mint_compress.estimators.elimination import cholesky
from mint_compress.estimators.samples import Samples, check_samples, check_share

SINGULAR = 1e10
"""A parent of which the others leave less than 1/SINGULAR of the variance is taken for determined."""


def gaussian(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    noise: float = 1e-2,
    ridge: float = 0.0,
    correct: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """I(child group; parent group | all other parents) for all pairs, as if jointly Gaussian.

    All pairs come from one factorisation, in float64. Rescaling or shifting a column changes nothing.

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
        rows, need one.
    correct
        Subtract the bias of independent, jointly Gaussian rows, which is exact with ``noise=0``
        and ``ridge=0`` and needs n > d + (columns of the widest child group). Noise is not
        estimated, so with it, where parents explain nearly all of a child, estimates are low by up
        to 1/2 log(n / (n - d)) per child column, much the same for every parent.
    seed, progress
        Part of the protocol; nothing is drawn, and nothing takes long.

    Returns
    -------
    Tensor
        ``(Q, P)`` float64 nats. Corrected estimates of 0 scatter around 0.

    Raises
    ------
    MintError
        NaN or infinite values, shapes and labels that do not fit; parents (without ridge) or
        children (without noise) that others determine; too few rows for the correction.
    """
    check_share("noise", noise)
    check_share("ridge", ridge)
    samples = check_samples(children, parents, child_groups, parent_groups)
    widths = [
        sorted({len(g) for g in side if len(g)}) for side in (samples.child_groups, samples.parent_groups)
    ]
    out = children.new_zeros(len(samples.child_groups), len(samples.parent_groups), dtype=torch.float64)
    if not widths[0] or not widths[1]:
        return out
    parent_columns = torch.cat(samples.parent_groups).sort().values
    free = samples.rows - 1 - len(parent_columns) - (widths[0][-1] - 1)
    if correct and free < 1:
        raise MintError(
            f"{samples.rows} rows are too few for {len(parent_columns)} parent columns: the bias correction "
            f"needs {samples.rows + 1 - free}. Draw more samples, or pass correct=False and a ridge."
        )
    precision, weight, residual = _all_parents(samples, parent_columns, noise, ridge)
    for b in widths[1]:
        p = [i for i, g in enumerate(samples.parent_groups) if len(g) == b]
        reach = _whitened_parents(precision, weight, torch.stack([samples.parent_groups[i] for i in p]))
        for a in widths[0]:
            q = [i for i, g in enumerate(samples.child_groups) if len(g) == a]
            nats = _pairs(residual, reach, torch.stack([samples.child_groups[i] for i in q]))
            if correct:
                nats = nats - _bias(samples.rows - 1 - (len(parent_columns) - b), a, b)
            out[torch.tensor(q)[:, None], torch.tensor(p)] = nats
    return out


def _all_parents(
    samples: Samples, columns: Tensor, noise: float, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Precision of the parents, weight and residual covariance of the children.

    Rows and columns of constant parents stay zero, so that column numbers remain what they were.
    """
    x, y, n = samples.children, samples.parents, samples.rows
    own = y[:, columns]
    covariance = own.T @ own / n
    covariance.diagonal().add_(ridge)
    whose = f"of {len(columns)} parents over {n} rows (ridge {ridge:g})"
    factor = cholesky(covariance, whose)
    inverse = torch.cholesky_inverse(factor)
    if float(inverse.diagonal().max()) > SINGULAR:
        raise MintError(f"The covariance {whose} is singular. Use more samples, or a larger ridge.")
    shared = own.T @ x / n
    fit = torch.cholesky_solve(shared, factor)
    residual = x.T @ x / n - shared.T @ fit
    residual.diagonal().add_(noise)
    precision = y.new_zeros(y.shape[1], y.shape[1])
    weight = y.new_zeros(y.shape[1], x.shape[1])
    precision[columns[:, None], columns] = inverse
    weight[columns] = fit
    return precision, weight, residual


def _whitened_parents(precision: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    """``(P, b, C)`` whose inner products over b are w_p' K_pp^-1 w_p."""
    factor = torch.linalg.cholesky(precision[groups[:, :, None], groups[:, None, :]])
    reach: Tensor = torch.linalg.solve_triangular(factor, weight[groups], upper=False)
    return reach


def _pairs(residual: Tensor, reach: Tensor, groups: Tensor) -> Tensor:
    """``(Q, P)`` nats from whitened parents ``(P, b, C)`` and child groups ``(Q, a)``."""
    among = residual[groups[:, :, None], groups[:, None, :]]
    if float(among.diagonal(dim1=1, dim2=2).min()) <= 1 / SINGULAR:
        raise MintError("A child is determined by its parents. Give it an observation noise, such as 1e-2.")
    factor = cholesky(among, "of a child group")
    signal: Tensor = torch.linalg.solve_triangular(
        factor[:, None], reach[:, :, groups].permute(2, 0, 3, 1), upper=False
    )
    a, b = signal.shape[-2:]
    if min(a, b) == 1:
        return 0.5 * signal.square().sum((2, 3)).log1p()
    inner = signal @ signal.mT if a < b else signal.mT @ signal
    inner.diagonal(dim1=2, dim2=3).add_(1)
    return cholesky(inner, "of a pair").diagonal(dim1=2, dim2=3).log().sum(2)


def _bias(freedom: int, a: int, b: int) -> float:
    """What the plug-in estimate is too large by: a Wishart determinant's mean log, twice."""
    i = torch.arange(a, dtype=torch.float64)
    return float(0.5 * (torch.digamma((freedom - i) / 2) - torch.digamma((freedom - b - i) / 2)).sum())
