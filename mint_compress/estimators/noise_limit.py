"""Backward elimination where the noise is large: children are not looked at again after the first step.

With much noise r, 1/2 log(1 + x / r) is nearly x / 2r, and what parent p says about all children together is
G_pp / 2 K_pp, with G = W R^-1 W'. Without p,

    K -= a K_p:,   G -= a q' + q a',   a = K_:p / K_pp,   q = G_:p - a G_pp / 2,

which keeps G what it is of the refitted W: everything is a matrix over the parents. What is left of the
logarithm is a factor for each parent, taken from where it begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mint_compress.estimators.regression import TINY, Regression

LEAST_FACTOR = 0.99
"""What the logarithm may take from a price for it to be near the limit."""


def eliminate_in_the_limit(
    problems: Sequence[Regression], prices: Tensor, count: int
) -> tuple[Tensor, Tensor] | None:
    """Which units go first, and what each costs.

    Parameters
    ----------
    problems
        Over the same units; left as they are.
    prices
        ``(units,)`` information of each unit, all others being given.
    count
        How many units go.

    Returns
    -------
    order, losses
        As of :func:`mint_compress.estimators.elimination.eliminate`. None where the prices are not near the
        limit, and where units have several columns, for which this is not faster.
    """
    if any(problem.blocks.shape[1] > 1 for problem in problems):
        return None
    precision, carried = (torch.stack(m) for m in zip(*map(_matrices, problems), strict=True))
    scale = torch.tensor([p.scale / 2 for p in problems], dtype=prices.dtype, device=prices.device)[:, None]
    k, g = (matrix.diagonal(dim1=1, dim2=2) for matrix in (precision, carried))
    in_the_limit = (scale * g / k).sum(0)
    factor = torch.where(in_the_limit > 0, prices / in_the_limit.clamp_min(TINY), 1.0)
    if bool((factor < LEAST_FACTOR).any()):
        return None
    gone = torch.zeros_like(prices)
    order, losses = [], []
    for _ in range(count):
        loss, unit = (scale * g / k).sum(0).mul_(factor).add_(gone).min(0)
        order.append(unit)
        losses.append(loss)
        gone[unit] = torch.inf
        _remove_(precision, carried, unit[None])
    return torch.stack(order), torch.stack(losses)


def _remove_(precision: Tensor, carried: Tensor, unit: Tensor) -> None:
    """Down-date the matrices of all problems; the unit is then worth nothing."""
    k, g = (matrix.index_select(2, unit) for matrix in (precision, carried))
    away = k / k.index_select(1, unit)
    half = g - away * g.index_select(1, unit) / 2
    precision.baddbmm_(away, k.mT, alpha=-1)
    carried.baddbmm_(away, half.mT, alpha=-1).baddbmm_(half, away.mT, alpha=-1)
    for matrix in (precision, carried):
        matrix.index_fill_(1, unit, 0).index_fill_(2, unit, 0)
    precision[:, unit, unit] = 1


def _matrices(problem: Regression) -> tuple[Tensor, Tensor]:
    """K and G over the units; one that is not read here stands apart and is worth nothing."""
    nothing = problem.blocks.new_full((len(problem.blocks), 1), -1)
    columns = torch.cat([problem.blocks, nothing], 1)[:, 0]  # where none is read there are no columns at all
    present = columns >= 0
    precision = torch.diag((~present).to(problem.precision))
    carried = torch.zeros_like(precision)
    own, scaled = columns[present], problem.weight / problem.noise.sqrt()
    here = present.nonzero()[:, 0]
    precision[here[:, None], here] = problem.precision[own[:, None], own]
    carried[here[:, None], here] = scaled[own] @ scaled[own].T
    return precision, carried
