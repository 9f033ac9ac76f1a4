"""Backward elimination: which parents can go from a linear map, at what price in information.

For a child y = W' x with parents x of covariance S, precision K = S^-1, and observation noise of
variance r on y, the information a block p of parents has about y given all other parents is

    I(y ; x_p | x_rest) = 1/2 log(1 + w_p' K_pp^-1 w_p / r)      (nats)

whose inner quadratic form is the saliency of Optimal Brain Surgeon (Hassibi and Stork, 1993). A
block is removed exactly by the Schur complement: K and W of what is left are down-dated, and W is
then the least-squares refit on the remaining parents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mint_compress.errors import MintError

EXACT_COLUMNS = 1200
"""Up to about this many columns a problem is down-dated after every single removal."""
LEAST_IMPORTANCE = 1e-6
"""Of a child, as a share of the most important one's."""
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
        ``(C,)`` variance that is not explained by any parent: observation noise plus what has
        been lost so far.
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
        """Drop rows and columns of units that are gone from a wide problem, once enough are."""
        if len(self.precision) <= EXACT_COLUMNS:
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
    noise: float,
    ridge: float,
    importance: Tensor | None = None,
) -> Regression:
    """Set up one elimination problem from second moments.

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
    noise
        Observation noise as a share of each child's variance: a child that its parents determine
        would otherwise carry infinite information.
    ridge
        Added to the diagonal, as a share of its mean.
    importance
        ``(C,)`` what a unit of variance in each child counts for. The children's noise is then as large
        as costs the same in each of them, and as much as ``noise`` of their variances on average.

    Raises
    ------
    MintError
        NaN or infinite moments, a noise of 0, or a covariance that is singular even with the ridge.
    """
    if not bool(torch.isfinite(covariance).all() and torch.isfinite(weight).all()):
        raise MintError("The second moments hold NaN or infinite values. Check the network and its input.")
    if not noise > 0:
        raise MintError(f"noise must be positive, not {noise!r}: parents determine their children here.")
    scale = covariance.diagonal().mean().clamp_min(1e-30)
    ridged = covariance.clone()
    ridged.diagonal().add_(ridge * scale)
    precision = torch.cholesky_inverse(cholesky(ridged, f"of {len(ridged)} parents (ridge {ridge:g})"))
    variance = ((covariance @ weight) * weight).sum(0)
    floor = variance.mean().clamp_min(1e-30) * 1e-3  # a dead child says nothing, at no price
    observed = variance.clamp_min(floor)
    if importance is not None:
        counts = importance.clamp_min(LEAST_IMPORTANCE * importance.max())
        observed = (counts * observed).mean() / counts
    return Regression(precision, weight.clone(), unit_columns(column_units, units), noise * observed)


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
        total += 0.5 * problem.scale * torch.log1p(problem.losses(units) / problem.noise).sum(1)
    return total


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
        information, summed over all children of all problems, goes. Ties: lower number first.
    loss : Tensor
        ``(units - keep,)`` float64: nats lost at each step, in the order of removal.
    """
    device = problems[0].weight.device
    left = torch.arange(units, device=device)
    batch = _batch_size(max(len(p.precision) for p in problems), units)
    order: list[Tensor] = []
    losses: list[Tensor] = []
    while len(left) > keep:
        scores = information(problems, left)
        if batch == 1:
            best = scores.argmin()
            going, lost = left[best, None], scores[best, None]
        else:
            going, lost = _cheapest(problems, left, scores, min(batch, len(left) - keep))
        for problem in problems:
            problem.remove(going)
        left = left[~torch.isin(left, going)]
        for problem in problems:
            problem.compact_(left)
        order.append(going)
        losses.append(lost)
        if step:
            step(units - len(left))
    return torch.cat(order), torch.cat(losses)


def _batch_size(columns: int, units: int) -> int:
    """Units to remove at once: one, until the matrices are wide, and then at most some 64 batches."""
    if columns <= EXACT_COLUMNS:
        return 1
    return max(int((columns / EXACT_COLUMNS) ** 2), units // 64, 1)


def _cheapest(
    problems: Sequence[Regression], left: Tensor, scores: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """``batch`` units to remove at once: exact elimination among the cheapest candidates only.

    Two copies of a channel are both cheap, so both are candidates, and the small problem sees that
    the second one is dear once the first is gone.
    """
    candidates = left[torch.argsort(scores, stable=True)[: 2 * batch + 16]].sort().values
    small = [p.restricted(candidates) for p in problems]
    there = torch.arange(len(candidates), device=left.device)
    order: list[int] = []
    losses: list[Tensor] = []
    for _ in range(min(batch, len(candidates))):
        among = information(small, there)
        best = int(among.argmin())
        order.append(int(there[best]))
        losses.append(among[best])
        for problem in small:
            problem.remove(there[best, None])
        there = there[there != there[best]]
    return candidates[order], torch.stack(losses)
