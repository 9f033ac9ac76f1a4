"""The two samples that a graph statistic compares, with the other parents taken into account.

Real points are (child, parent) of one row. Null points have the parent of another row, so that parent
and child are independent there, or independent given the other parents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.samples import Samples, with_noise

CONDITIONINGS = ("residual", "raw", "none")

NARROW = 16
"""Up to this many columns squared differences are summed one by one; beyond, a matrix product is faster."""

ROUNDING = 1e-10
"""A squared distance of less than this per standardised column is rounding, and taken for zero."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Points of both samples, in an order that knows nothing of the samples.

    Attributes
    ----------
    child
        ``(N, C)`` the children's coordinates.
    base
        ``(N, N)`` squared distances in all other coordinates.
    null
        ``(N,)`` bool: the points whose parent was redrawn.
    """

    child: Tensor
    base: Tensor
    null: Tensor


def pools(
    samples: Samples, conditioning: str, noise: float, ridge: float, generator: torch.Generator
) -> Callable[[Tensor], Pool]:
    """Draw a split of the rows and the children's noise; what is returned makes each parent group's pool.

    One split serves all pairs: they compare better.
    """
    device = samples.children.device
    order = torch.randperm(samples.rows, generator=generator).to(device)
    mix = torch.rand(samples.rows, generator=generator).to(device)
    child = with_noise(samples.children, noise, generator)
    if conditioning == "raw" and sum(len(g) > 0 for g in samples.parent_groups) > 1:
        return _raw(samples, child, order, mix)
    rows, source, null = halves(order, mix)
    condition = _residual(samples, child, ridge) if conditioning == "residual" else None

    def pool(columns: Tensor) -> Pool:
        left, own = condition(columns) if condition else (child, samples.parents[:, columns])
        return Pool(left[rows], squared_distances(own[source]), null)

    return pool


def halves(order: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half of the rows real, half with the parent of another one of them.

    Returns
    -------
    tuple
        Rows of the pooled points, the row each takes its parent from, and which are null points.
    """
    half = len(order) // 2
    return _mixed(order[:half], order[half:], order[half:].roll(1), mix)


def thirds(distances: Tensor, order: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A third of the rows real, a third with the parent of the nearest donor, a third donors.

    ``distances`` ``(n, n)`` are those of the conditioning variables. Among donors at the same distance
    the null rows take turns: one donor for all would make their parents copies of one another.
    """
    third = len(order) // 3
    real, null, donors = order[:third], order[third : 2 * third], order[2 * third :]
    away = distances[null[:, None], donors]
    turns = torch.arange(len(donors), device=order.device) - torch.arange(third, device=order.device)[:, None]
    nearest = away == away.amin(1, keepdim=True)
    choice = turns.remainder_(len(donors)).masked_fill_(~nearest, len(donors)).argmin(1)
    return _mixed(real, null, donors[choice], mix)


def _mixed(real: Tensor, null: Tensor, redrawn: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, source = torch.cat([real, null]), torch.cat([real, redrawn])
    label = torch.arange(len(rows), device=rows.device) >= len(real)
    # ties in the graph go by index: in an order that knows the labels they would bias the count
    shuffle = mix[: len(rows)].argsort()
    return rows[shuffle], source[shuffle], label[shuffle]


def _raw(samples: Samples, child: Tensor, order: Tensor, mix: Tensor) -> Callable[[Tensor], Pool]:
    """The other parents are coordinates like any other: distances to all parents, less those to one's own."""
    y = samples.parents
    total = squared_distances(y)

    def pool(columns: Tensor) -> Pool:
        own = squared_distances(y[:, columns])
        others = _without_rounding(total - own, y.shape[1])
        rows, source, null = thirds(others, order, mix)
        base = others[rows[:, None], rows] + own[source[:, None], source]
        return Pool(child[rows], base, null)

    return pool


def _residual(samples: Samples, child: Tensor, ridge: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Ridge residuals of child and parent on all parents but one group, for any group from one inverse.

    With K the inverse of the parents' covariance and W the regression of the child on all parents,
    the group's own residual is Y K_p (K_pp)^-1, and the child's is its residual on all parents
    plus that times W_p.
    """
    y, rows = samples.parents, samples.rows
    varying = sum(map(len, samples.parent_groups))  # a constant column explains nothing
    if rows <= varying + 1:
        raise MintError(
            f"{rows} rows are too few to regress {varying} parent columns out. "
            "Draw more samples per class, or use the estimator gaussian."
        )
    covariance = y.T @ y / rows
    covariance.diagonal().add_(max(ridge, 1e-9))
    factor = torch.linalg.cholesky(covariance)
    precision = torch.cholesky_inverse(factor)
    weight = torch.cholesky_solve(y.T @ child / rows, factor)
    left = child - y @ weight

    def condition(own: Tensor) -> tuple[Tensor, Tensor]:
        own = own.to(y.device)
        reach = y @ torch.linalg.solve(precision[own][:, own], precision[:, own], left=False)
        return _rescaled(left + reach @ weight[own], ridge), _rescaled(reach, ridge)

    return condition


def _rescaled(residual: Tensor, floor: float) -> Tensor:
    variance = residual.square().mean(0)
    explained = variance < max(floor, 1e-12)  # what the ridge leaves of it is no information
    return (residual / variance.masked_fill(explained, 1).sqrt()).masked_fill(explained, 0)


def squared_distances(points: Tensor) -> Tensor:
    """``(n, n)`` of standardised points ``(n, d)`` in float64; duplicate rows are exactly 0 apart."""
    if points.shape[1] <= NARROW:
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    inner = points @ points.T
    inner = inner + inner.T  # symmetric to the last bit, which a product need not be
    size = points.square().sum(1)
    squared = torch.sub(size[:, None] + size, inner, out=inner)
    return _without_rounding(squared, points.shape[1])


def _without_rounding(squared: Tensor, columns: int) -> Tensor:
    return squared.masked_fill_(squared < ROUNDING * columns, 0)
