"""Mutual information from distances to nearest neighbours, conditional or not.

Round every row, let a box in the space of all variables reach to the k-th nearest other row, in the
maximum norm. With n_u the number of other rows strictly inside that box in the coordinates u alone,

    I(x; y | z) = psi(k) - < psi(n_xz + 1) + psi(n_yz + 1) - psi(n_z + 1) >      (nats)

where psi is the digamma function and the mean goes over the rows (Frenzel and Pompe). Without z, n_z + 1
is the number of rows, and this is the first estimator of Kraskov, Stoegbauer and Grassberger (eq. 8).

It assumes no form of dependence and pays for that with rows: the box has a side in every conditioning
column, grows with their number, and what it averages over is then lost. Use it with few other parents,
or as a check on the other estimators. It takes time of order n^2 a pair, but no more for many other
columns than for one: distances in all parent groups but one come from running maxima.

Ties, as rectified channels have them: k is replaced by 1 + the number of other rows strictly inside the
box in all coordinates, which is k where no distances are equal; and where the box has no size, because
k other rows or more are equal, "inside" means equal. Each psi(1 + count) then estimates the logarithm
of a probability, as Gao et al. have it for mixtures of discrete and continuous variables.

References
----------
A. Kraskov, H. Stoegbauer, P. Grassberger, "Estimating mutual information", Phys. Rev. E 69, 2004.
S. Frenzel, B. Pompe, "Partial mutual information for coupling analysis of multivariate time series",
Phys. Rev. Lett. 99, 2007.
W. Gao, S. Kannan, S. Oh, P. Viswanath, "Estimating mutual information for discrete-continuous
mixtures", NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.memory import at_once
from mint_compress.estimators.samples import check_samples, check_share, with_noise
from mint_compress.progress import Progress

CACHED = 2**18
"""Distances worked on at once on the CPU: about what its second-level cache holds."""

EDGE = 1e-5
"""Share of a box's size within which a distance is on its edge: equal steps differ by rounding."""

FOLD = 32
"""Values of which the minimum is taken first when the k-th smallest of a row is looked for."""


def knn(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    neighbours: int = 5,
    noise: float = 1e-2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """I(child group; parent group | all other parents) for all pairs, from k nearest neighbours.

    All columns are standardised first; a constant column says nothing. Distances are computed in the
    samples' own precision: float64 if either side is, else float32.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row.
    child_groups, parent_groups
        ``(C,)`` and ``(d,)`` labels 0..Q-1 and 0..P-1; None: every column by itself.
    neighbours
        k: which neighbour's distance sets the scale. More of them: less variance, more bias.
    noise
        Variance of the Gaussian observation noise added to every child, as a share of its own. A
        child that its parents determine would otherwise carry infinite information.
    seed
        Of the noise; nothing else is drawn.
    progress
        Called with ("knn", pairs done, pairs in all). All pairs advance together, some rows at a
        time, so the number of pairs done is their total times the share of the rows done.

    Returns
    -------
    Tensor
        ``(Q, P)`` float64 nats, not clamped: estimates of 0 scatter around 0.

    Raises
    ------
    MintError
        Samples as in :func:`check_samples`, a ``neighbours`` that is no number of rows, a negative noise.
    """
    check_share("noise", noise)
    if not isinstance(neighbours, int) or neighbours < 1:
        raise MintError(f"neighbours must be a whole number, at least 1, not {neighbours!r}.")
    samples = check_samples(children, parents, child_groups, parent_groups)
    if samples.rows <= neighbours:
        raise MintError(
            f"{samples.rows} rows are too few for {neighbours} neighbours. Draw more rows, or ask for fewer."
        )
    precision = torch.promote_types(torch.promote_types(children.dtype, parents.dtype), torch.float32)
    fold = FOLD if samples.rows > 2 * FOLD * neighbours else 1
    generator = torch.Generator().manual_seed(seed)
    noisy = with_noise(samples.children, noise, generator).to(precision)
    child = _points(samples.child_groups, noisy, fold)
    parent = _points(samples.parent_groups, samples.parents.to(precision), fold)
    shape = len(samples.child_groups), len(samples.parent_groups)
    out = torch.zeros(shape, dtype=torch.float64)
    if child.shape[1] and parent.shape[1]:

        def tick(rows: int) -> None:
            if progress:
                progress("knn", out.numel() * rows // samples.rows, out.numel())

        children_there, parents_there = (
            torch.tensor([i for i, g in enumerate(side) if len(g)])
            for side in (samples.child_groups, samples.parent_groups)
        )
        pairs = _all_pairs(child, parent, samples.rows, neighbours, fold, tick)
        out[children_there[:, None], parents_there] = pairs.cpu()
    return out.to(children.device)


def _all_pairs(
    child: Tensor, parent: Tensor, n: int, neighbours: int, fold: int, tick: Callable[[int], None]
) -> Tensor:
    """``(Q, P)`` nats from points ``(width, Q, N)`` and ``(width, P, N)``, of which n are no padding."""
    sums = torch.zeros(child.shape[1], parent.shape[1], dtype=torch.float64, device=child.device)
    step, width = _block(n, child, parent)
    for first in range(0, n, step):
        last = min(first + step, n)
        rows = torch.arange(first, last, device=child.device)
        for at, (given, with_parent) in enumerate(_conditions(parent, rows, n)):
            found = [_psi_sums(c, rows, given, with_parent, neighbours, fold) for c in child.split(width, 1)]
            sums[:, at] += torch.cat(found)
        tick(last)
    return sums / n


def _points(groups: list[Tensor], values: Tensor, fold: int) -> Tensor:
    """``(width, groups, N)`` coordinates of the groups that have columns.

    N is the number of rows, rounded up to a multiple of ``fold``. Narrow groups get coordinates of
    zero, which add no distance.
    """
    varying = [g.to(values.device) for g in groups if len(g)]
    width = max((len(g) for g in varying), default=1)
    points = values.new_zeros(width, len(varying), math.ceil(len(values) / fold) * fold)
    for at, columns in enumerate(varying):
        points[: len(columns), at, : len(values)] = values[:, columns].T
    return points


def _block(rows: int, child: Tensor, parent: Tensor) -> tuple[int, int]:
    """How many rows, and how many child groups, are worked on together."""
    one, device = child.element_size(), child.device
    columns = child.shape[-1]
    # two arrays of distances at a time, and what the comparisons and the candidates take
    distances = at_once(4 * one, device, most=CACHED if device.type == "cpu" else 2**29)
    # the parents' distances of every group are held as well, for these rows
    held = at_once((parent.shape[1] + 4) * columns * one, device)
    step = max(1, min(rows, distances // columns, held))
    return step, max(1, distances // (step * columns))


def _conditions(parent: Tensor, rows: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Distances ``(rows, N)`` from some rows in all other parents, and in all, for each parent group.

    A row is infinitely far from itself and from the padding, so that nothing counts them.
    """
    base = parent.new_zeros(len(rows), parent.shape[-1])
    base[:, n:] = math.inf
    base[torch.arange(len(rows), device=rows.device), rows] = math.inf
    # a maximum cannot be taken back, but that of all the others is one of those before and those after
    after = [base]
    for at in range(parent.shape[1] - 1, 0, -1):
        after.append(torch.maximum(after[-1], _distances(parent[:, at], rows)))
    before = base
    for at in range(parent.shape[1]):
        own = _distances(parent[:, at], rows)
        given = torch.maximum(before, after.pop())
        yield given, torch.maximum(given, own)
        before = torch.maximum(before, own)


def _distances(points: Tensor, rows: Tensor) -> Tensor:
    """``(..., rows, N)`` in the maximum norm, from points ``(width, ..., N)``."""
    out = (points[0][..., rows, None] - points[0][..., None, :]).abs_()
    for coordinate in points[1:]:
        further = coordinate[..., rows, None] - coordinate[..., None, :]
        torch.maximum(out, further.abs_(), out=out)
    return out


def _psi_sums(
    child: Tensor, rows: Tensor, given: Tensor, with_parent: Tensor, neighbours: int, fold: int
) -> Tensor:
    """``(B,)`` sums over some rows of the digammas, for child groups ``(width, B, N)``."""
    x = _distances(child, rows)
    joint = torch.maximum(x, with_parent)
    box = _kth_smallest(joint, neighbours, fold)[..., None] * (1 - EDGE)
    box.clamp_min_(torch.finfo(x.dtype).tiny)  # strictly inside nothing is nothing: there, count the equal

    def psi(distances: Tensor, scratch: Tensor) -> Tensor:
        # a comparison written as a number of the same type is added up faster than a bool
        return torch.digamma(torch.lt(distances, box, out=scratch).sum(-1).double() + 1)

    both = psi(joint, joint) + psi(given, joint)
    apart = psi(with_parent, joint) + psi(torch.maximum(x, given, out=x), x)
    return (both - apart).sum(-1)


def _kth_smallest(values: Tensor, k: int, fold: int) -> Tensor:
    """Along the last dimension, whose length is a multiple of ``fold``; exact, ties included.

    The k smallest values lie in at most k of the stretches of ``fold`` values, and which these are
    is told by the stretches' minima: two short selections in place of a long one.
    """
    stretches = values.unflatten(-1, (-1, fold))
    chosen = stretches.amin(-1).topk(k, largest=False, sorted=False).indices.flatten(0, -2)
    starts = torch.arange(len(chosen), device=values.device)[:, None] * stretches.shape[-2]
    few = stretches.flatten(0, -2).index_select(0, (chosen + starts).flatten())
    smallest: Tensor = few.view(*values.shape[:-1], k * fold).topk(k, largest=False).values
    return smallest[..., -1]
