"""Geometric mutual information: the Friedman-Rafsky statistic on an exact minimum spanning tree.

Half of the points are real pairs (child, parent), the other half have the parent of another row. The
fewer edges of their common spanning tree join the two halves, the further the joint distribution is
from the product of its margins: 1 - R (m + k) / (2 m k) estimates the Henze-Penrose divergence of
the two, which lies in [0, 1). It is a quantity of its own, not Shannon's; 0 means independent.

The quantity conditioned on other parents needs null points whose parent is redrawn *given* the rest.
The paper takes the parent of the nearest donor in the space of the conditioning variables ("raw").
That has no signal beyond a few conditioning dimensions: they swamp every distance, the ones to the
donors and those in the tree. With few, it is too high where there is no link: one donor serves
several null points, and these copies lie close together. Regressing the other parents out first
("residual") restores the signal, and is blind to a common cause that acts nonlinearly.

References
----------
S. Yasaei Sekeh, A. O. Hero, "Geometric estimation of multivariate dependency", Entropy 21(8), 2019.
M. R. Ganesh, J. J. Corso, S. Yasaei Sekeh, "MINT: Deep network compression via mutual
information-based neuron trimming", ICPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mint_compress.counting import Progress
from mint_compress.errors import MintError
from mint_compress.estimators.mst import cross_edges
from mint_compress.estimators.samples import Samples, check_samples, check_share

CONDITIONINGS = ("residual", "raw", "none")

Conditioned = tuple[Tensor, Tensor, Tensor]
"""Child ``(n, C)``, own parent group ``(n, b)``, conditioning variables ``(n, z)``."""


def gmi(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    conditioning: str = "residual",
    noise: float = 1e-2,
    ridge: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Geometric mutual information of every child group with every parent group.

    All columns are standardised first; a constant column says nothing.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row.
    child_groups, parent_groups
        ``(C,)`` and ``(d,)`` labels 0..Q-1 and 0..P-1; None: every column by itself.
    conditioning
        What is done about the other parent groups. ``none``: nothing. ``raw``: the paper's
        estimator; thirds of the rows are real pairs, null pairs and donors of the null pairs'
        parents. Useful with a few conditioning columns only. ``residual``: they are regressed
        out of child and parent, linearly, and the standardised residuals are compared as with ``none``.
    noise
        Variance of the Gaussian observation noise added to every child, as a share of its own. A
        child that its parents determine would otherwise look equally dependent on each of them.
    ridge
        Of the regression, as a share of each column's variance. A residual with less than that
        share of the variance counts as explained: it is set to zero, not blown up.
    seed
        Of the split, the permutation and the noise.
    progress
        Called with ("gmi", pairs done, pairs in all).

    Returns
    -------
    Tensor
        ``(Q, P)`` float64. The quantity lies in [0, 1); its estimates are not clamped, scatter
        around 0 where there is no dependence, and may be negative.

    Raises
    ------
    MintError
        Unknown conditioning, samples as in :func:`check_samples`, too few rows.
    """
    if conditioning not in CONDITIONINGS:
        raise MintError(f"Unknown conditioning {conditioning!r}. Choose from: {', '.join(CONDITIONINGS)}.")
    check_share("noise", noise)
    check_share("ridge", ridge)
    samples = check_samples(children, parents, child_groups, parent_groups)
    if samples.rows < 6:
        raise MintError(f"{samples.rows} rows are too few for a spanning tree. Give 6 or more.")
    generator = torch.Generator().manual_seed(seed)
    # one split for all pairs: they compare better
    order = torch.randperm(samples.rows, generator=generator)
    mix = torch.rand(samples.rows, generator=generator)
    child = _with_noise(samples.children, noise, generator)
    condition = (
        _residual(samples, child, ridge)
        if conditioning == "residual"
        else _plain(samples, child, conditioning == "raw")
    )
    out = torch.zeros(len(samples.child_groups), len(samples.parent_groups), dtype=torch.float64)
    for parent, columns in enumerate(samples.parent_groups):
        if len(columns):
            out[:, parent] = _against_one_parent(samples, condition(columns), order, mix)
        if progress:
            progress("gmi", out.shape[0] * (parent + 1), out.numel())
    return out.to(children.device)


def _with_noise(child: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(child.shape, generator=generator, dtype=child.dtype).to(child.device)
    return child + drawn * math.sqrt(noise) * child.any(0)  # a constant child stays constant


def _plain(samples: Samples, child: Tensor, given: bool) -> Callable[[Tensor], Conditioned]:
    def condition(own: Tensor) -> Conditioned:
        others = torch.ones(samples.parents.shape[1], dtype=torch.bool)
        others[own] = False
        if not given:
            others[:] = False
        return child, samples.parents[:, own], samples.parents[:, others.to(child.device)]

    return condition


def _residual(samples: Samples, child: Tensor, ridge: float) -> Callable[[Tensor], Conditioned]:
    """Ridge residuals on all parents but one group, for every group from one inverse.

    With K the inverse of the parents' covariance and W the regression of the child on all parents,
    the group's own residual is Y K_p (K_pp)^-1, and the child's is its residual on all parents
    plus that times W_p.
    """
    y, rows = samples.parents, samples.rows
    if rows <= y.shape[1] + 1:
        raise MintError(
            f"{rows} rows are too few to regress {y.shape[1]} parent columns out. "
            "Draw more samples per class, or use the estimator gaussian."
        )
    covariance = y.T @ y / rows
    covariance.diagonal().add_(max(ridge, 1e-9))
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    weight = torch.cholesky_solve(y.T @ child / rows, factor)
    left = child - y @ weight

    def condition(own: Tensor) -> Conditioned:
        reach = y @ torch.linalg.solve(precision[own][:, own], precision[:, own], left=False)
        nothing = y[:, :0]
        return _rescaled(left + reach @ weight[own], ridge), _rescaled(reach, ridge), nothing

    return condition


def _rescaled(residual: Tensor, floor: float) -> Tensor:
    variance = residual.square().mean(0)
    explained = variance < max(floor, 1e-12)  # what the ridge leaves of it is no information
    return (residual / variance.masked_fill(explained, 1).sqrt()).masked_fill(explained, 0)


def _against_one_parent(samples: Samples, given: Conditioned, order: Tensor, mix: Tensor) -> Tensor:
    """``(Q,)`` estimates for one parent group."""
    child, own, others = given
    device = child.device
    rows, source, null = _pool(others, order.to(device), mix.to(device))
    base = _squared_distances(torch.cat([own[source], others[rows]], 1))
    width = max(1, *(len(g) for g in samples.child_groups))
    points = child.new_zeros(len(samples.child_groups), len(rows), width)  # zeros add no distance
    for at, columns in enumerate(samples.child_groups):
        points[at, :, : len(columns)] = child[rows][:, columns.to(device)]
    at_once = max(1, 2 ** (15 if device.type == "cpu" else 24) // len(rows))
    crossing = torch.cat([cross_edges(base, some, null) for some in points.split(at_once)])
    second = int(null.sum())
    first = len(null) - second
    estimates = 1 - crossing.double() * len(null) / (2 * first * second)
    silent = torch.tensor([len(g) == 0 for g in samples.child_groups])
    return estimates.cpu().masked_fill(silent, 0)


def _pool(others: Tensor, order: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the pooled points, the row each takes its parent from, and which are null points."""
    if others.shape[1]:
        third = len(order) // 3
        real, null, donors = order[:third], order[third : 2 * third], order[2 * third :]
        redrawn = donors[torch.cdist(others[null], others[donors]).argmin(1)]
    else:
        half = len(order) // 2
        real, null = order[:half], order[half:]
        redrawn = null.roll(1)
    rows, source = torch.cat([real, null]), torch.cat([real, redrawn])
    label = torch.arange(len(rows), device=order.device) >= len(real)
    # ties in the tree go by index: in an order that knows the labels they would bias the count
    shuffle = mix[: len(rows)].argsort()
    return rows[shuffle], source[shuffle], label[shuffle]


def _squared_distances(points: Tensor) -> Tensor:
    """Without the matrix product's cancellation, so that duplicate rows are exactly 0 apart."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
