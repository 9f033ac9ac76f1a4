"""Geometric mutual information: how well a graph of near points mixes two samples.

Half of the points are real pairs (child, parent), the other half have the parent of another row. The
fewer edges of a graph of near points join the two halves, the further the joint distribution is from
the product of its margins. With R of E edges joining m points to k others, N in all,

    1 - R / E * N (N - 1) / (2 m k)

is 0 on average when labels are exchangeable, whatever the graph, and tends to the Henze-Penrose
divergence of the two samples, which lies in [0, 1). It is a quantity of its own, not Shannon's; 0
means independent. The graph is the exact Euclidean minimum spanning tree (Friedman and Rafsky; then
the formula is the paper's 1 - R N / (2 m k)) or that of every point's nearest neighbours (Schilling;
Henze), whose k N edges give the count less variance.

The quantity conditioned on other parents needs null points whose parent is redrawn *given* the rest.
The paper takes the parent of the nearest donor in the space of the conditioning variables ("raw").
That has no signal beyond a few conditioning dimensions: they swamp every distance, the ones to the
donors and those in the graph. With few, it is too high where there is no link: one donor serves
several null points, and these copies lie close together. Regressing the other parents out first
("residual") restores the signal, and is blind to a common cause that acts nonlinearly.

References
----------
J. H. Friedman, L. C. Rafsky, "Multivariate generalizations of the Wald-Wolfowitz and Smirnov
two-sample tests", Annals of Statistics 7(4), 1979.
M. F. Schilling, "Multivariate two-sample tests based on nearest neighbors", JASA 81, 1986.
N. Henze, "A multivariate two-sample test based on the number of nearest neighbor type coincidences",
Annals of Statistics 16(2), 1988.
S. Yasaei Sekeh, A. O. Hero, "Geometric estimation of multivariate dependency", Entropy 21(8), 2019.
M. R. Ganesh, J. J. Corso, S. Yasaei Sekeh, "MINT: Deep network compression via mutual
information-based neuron trimming", ICPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.conditioning import CONDITIONINGS, Pool, pools
from mint_compress.estimators.memory import at_once
from mint_compress.estimators.mst import cross_edges
from mint_compress.estimators.neighbours import cross_neighbours
from mint_compress.estimators.samples import Samples, check_samples, check_share
from mint_compress.progress import Progress

GRAPHS = ("knn", "mst")

POINTS_AT_ONCE = 2**17
"""In one block of pairs on a CPU: progress is told after each."""


def gmi(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    conditioning: str = "residual",
    graph: str = "knn",
    neighbours: int = 10,
    noise: float = 1e-2,
    ridge: float = 1e-3,
    repeats: int = 1,
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
    graph
        ``knn``: directed edges from every point to its nearest neighbours. ``mst``: the exact
        minimum spanning tree.
    neighbours
        Of each point, for ``knn``.
    noise
        Variance of the Gaussian observation noise added to every child, as a share of its own. A
        child that its parents determine would otherwise look equally dependent on each of them.
    ridge
        Of the regression, as a share of each column's variance. A residual with less than that
        share of the variance counts as explained: it is set to zero, not blown up.
    repeats
        Average over this many independent splits, permutations and noises.
    seed
        Of the splits, the permutations and the noises.
    progress
        Called with ("gmi", pairs done, pairs in all), each repeat counting its pairs.

    Returns
    -------
    Tensor
        ``(Q, P)`` float64. The quantity lies in [0, 1); its estimates are not clamped, scatter
        around 0 where there is no dependence, and may be negative.

    Raises
    ------
    MintError
        Unknown conditioning or graph, samples as in :func:`check_samples`, too few rows.
    """
    _check_choices(conditioning, graph)
    _check_numbers(neighbours, repeats, noise, ridge)
    samples = check_samples(children, parents, child_groups, parent_groups)
    degree = neighbours if graph == "knn" else 0
    _check_rows(samples.rows, conditioning, degree)
    generator = torch.Generator().manual_seed(seed)
    device = samples.children.device
    sides = samples.child_groups, samples.parent_groups
    child_numbers, parent_numbers = ([i for i, group in enumerate(side) if len(group)] for side in sides)
    out = torch.zeros(len(sides[0]), len(sides[1]), dtype=torch.float64, device=device)
    index, into = _padded(samples).to(device), torch.tensor(child_numbers, dtype=torch.int64, device=device)
    tick = _ticker(progress, repeats * len(child_numbers) * len(parent_numbers))
    for _ in range(repeats if child_numbers and parent_numbers else 0):
        pool = pools(samples, conditioning, noise, ridge, generator)
        for parent in parent_numbers:
            estimates = _against_one_parent(pool(sides[1][parent]), index, degree, tick)
            out[into, parent] += estimates / repeats
    return out


def _check_choices(conditioning: str, graph: str) -> None:
    for what, value, known in (("conditioning", conditioning, CONDITIONINGS), ("graph", graph, GRAPHS)):
        if value not in known:
            raise MintError(f"Unknown {what} {value!r}. Choose from: {', '.join(known)}.")


def _check_numbers(neighbours: int, repeats: int, noise: float, ridge: float) -> None:
    for what, number in (("neighbours", neighbours), ("repeats", repeats)):
        if not isinstance(number, int) or number < 1:
            raise MintError(f"{what} must be a whole number, at least 1, not {number!r}.")
    check_share("noise", noise)
    check_share("ridge", ridge)


def _check_rows(rows: int, conditioning: str, neighbours: int) -> None:
    """Refuse samples whose pool would be no more than every point and its neighbours."""
    pooled = 2 * (rows // 3) if conditioning == "raw" else rows
    if pooled < max(6, neighbours + 2):
        what = f"{neighbours} neighbours of each" if neighbours else "a spanning tree"
        raise MintError(f"{rows} rows are too few for {what} (conditioning {conditioning!r}). Draw more.")


def _ticker(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Count pairs as they come."""
    done = 0

    def tick(pairs: int) -> None:
        nonlocal done
        done += pairs
        if progress:
            progress("gmi", done, total)

    return tick


def _padded(samples: Samples) -> Tensor:
    """``(Q, width)`` columns of every child group that has any; where it has fewer, one past the last."""
    groups = [group.tolist() for group in samples.child_groups if len(group)]
    width, beyond = max(map(len, groups), default=0), samples.children.shape[1]
    return torch.tensor([group + [beyond] * (width - len(group)) for group in groups], dtype=torch.int64)


def _against_one_parent(pool: Pool, index: Tensor, neighbours: int, tick: Callable[[int], None]) -> Tensor:
    """``(Q,)`` estimates for one parent group; 0 neighbours stand for the tree."""
    nodes, device = len(pool.null), pool.null.device
    count = partial(cross_neighbours, neighbours=neighbours) if neighbours else cross_edges
    edges = nodes * neighbours if neighbours else nodes - 1
    nothing = pool.child.new_zeros(nodes, 1)  # adds no distance
    child = torch.cat([pool.child, nothing], 1).float()
    most = max(1, POINTS_AT_ONCE // nodes) if device.type == "cpu" else None
    counts = []
    for some in index.split(at_once(nodes * (64 + 8 * index.shape[1]), device, most=most)):
        counts.append(count(pool.base, child[:, some].movedim(1, 0), pool.null))
        tick(len(some))
    second = int(pool.null.sum())
    mixed = 2 * (nodes - second) * second / (nodes * (nodes - 1))  # share of all pairs of points
    return 1 - torch.cat(counts).double() / edges / mixed
