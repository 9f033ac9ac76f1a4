"""Backward elimination: which parents go one after the other, at what price in information.

Each alone, all others being given, two copies of a parent both look dispensable. Here the cheapest goes, the
others take over what it did, and the next is chosen among what is left;
:mod:`mint_compress.estimators.regression` has the price and the removal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mint_compress.estimators.noise_limit import eliminate_in_the_limit
from mint_compress.estimators.regression import Regression, information

BATCHES = 64
"""A problem of more than twice as many units is down-dated about so often, and not after every removal."""
NARROW = 1200
"""Columns above which batches grow: a down-date costs the square of the columns."""


def eliminate(
    problems: Sequence[Regression],
    units: int,
    *,
    keep: int = 0,
    step: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Backward elimination over all problems jointly.

    Parameters
    ----------
    problems
        They are used up: weights and precisions are down-dated in place.
    units
        Number of units; every problem's ``blocks`` has that many rows.
    keep
        Stop when this many units are left.
    step
        Called with the number of units removed so far.

    Returns
    -------
    order : Tensor
        ``(units - keep,)`` int64, first removed first. At every step the unit with the smallest
        information, summed over all problems, goes. Ties: lower number first.
    loss : Tensor
        ``(units - keep,)`` float64: nats lost at each step, in the order of removal.
    """
    batch = _batch_size(max(len(p.precision) for p in problems), units)
    return _in_batches(problems, units, batch, keep, step)


def _in_batches(
    problems: Sequence[Regression], units: int, batch: int, keep: int, step: Callable[[int], None] | None
) -> tuple[Tensor, Tensor]:
    left = torch.arange(units, device=problems[0].weight.device)
    order: list[Tensor] = [left[:0]]
    losses: list[Tensor] = [torch.zeros(0, dtype=torch.float64, device=left.device)]
    while len(left) > keep:
        going, lost = _cheapest(problems, left, min(batch, len(left) - keep))
        left = left[~torch.isin(left, going)]
        for problem in problems:
            problem.remove(going)
            if batch > 1:
                problem.compact_(left)
        order.append(going)
        losses.append(lost)
        if step:
            step(units - len(left))
    return torch.cat(order), torch.cat(losses)


def _batch_size(columns: int, units: int) -> int:
    """Units to remove at once: one, until there are many or their matrices are wide."""
    return max(int((columns / NARROW) ** 2), units // BATCHES, 1)


def _cheapest(problems: Sequence[Regression], left: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` units to remove next, in order, and the nats that go with each."""
    scores = information(problems, left)
    if count == 1:
        best = scores.argmin()
        return left[best, None], scores[best, None]
    return _cheapest_together(problems, left, scores, count)


def _cheapest_together(
    problems: Sequence[Regression], left: Tensor, scores: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """``count`` units to remove at once: exact elimination among the cheapest candidates only.

    Two copies of a channel are both cheap, so both are candidates, and the small problem sees that
    the second one is dear once the first is gone.
    """
    cheapest = torch.argsort(scores, stable=True)[: 2 * count + 16].sort().values
    candidates = left[cheapest]
    small = [p.restricted(candidates) for p in problems]
    found = eliminate_in_the_limit(small, scores[cheapest], count)
    if found is None:
        found = _in_batches(small, len(candidates), 1, len(candidates) - count, None)
    return candidates[found[0]], found[1]
