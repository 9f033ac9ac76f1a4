"""Exact minimum spanning trees on dense distances: Prim's algorithm, many problems at a time.

Edges are compared by (weight, lower index, higher index). No two edges are equal in that order, so
the tree is unique, whatever ties there are: rows that are duplicates of one another stay connected by
edges of length zero, and the answer does not depend on the algorithm or on the device. In float32 this
holds because every operation on the squares is rounded on its own, never a product and a sum at once.

Every step works on one word per node, the weight above the edge's code, so that one minimum does it
all. The words are float64: the 29 bits by which it is longer than float32 hold the code, and a
minimum of float64 numbers is vectorised where one of int64 numbers is not. (Positive int64 numbers may be
read as float64 without changing their order, as long as they do not look like NaN.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from mint_compress.errors import MintError

log = logging.getLogger(__name__)

INDEX_BITS = 14
MOST_NODES = 2**INDEX_BITS
"""Two indices and a flag must fit beside a float32 in 64 bits. A matrix of that size takes 1 GiB."""

CODE_BITS = 2 * INDEX_BITS + 1

NODES_AT_ONCE = 2**17
"""In one block on a CPU: many, so that PyTorch is called less often, with arrays that a cache still holds."""

FAR = 1e18
"""Coordinate of a node that is in the tree already: its square is finite in float32."""

LARGEST = 1e34
"""Squared distances must stay below that, so that ``FAR`` squared is larger than every one."""


def minimum_spanning_tree(distances: Tensor) -> Tensor:
    """Edges of the minimum spanning tree of each distance matrix.

    Parameters
    ----------
    distances
        ``(..., N, N)`` symmetric, float32 or float64, finite, not negative; the diagonal is not
        looked at. A distance of zero is an edge like any other.

    Returns
    -------
    Tensor
        ``(..., N - 1, 2)`` int64, lower index first, in the order in which the tree grew from node 0.

    Raises
    ------
    MintError
        Not square, empty, too many nodes, or values that are no distances.
    """
    batch, nodes = distances.shape[:-2], distances.shape[-1]
    if distances.ndim < 2 or distances.shape[-2] != nodes or not nodes:
        raise MintError(f"distances must be (..., N, N), not {tuple(distances.shape)}.")
    _check_nodes(nodes)
    if not bool((torch.isfinite(distances) & (distances >= 0)).all()):
        raise MintError("distances must be finite and not negative. Check what they were computed from.")
    flat = distances.reshape(-1, nodes, nodes)
    if flat.dtype == torch.float64:
        # ranks sort like the distances, ties included, and leave room for the code
        order = torch.unique(flat, return_inverse=True)[1]
    else:
        order = (flat.float() + 0.0).view(torch.int32)  # -0.0 would sort below everything
    codes = _edge_codes(nodes, flat.device)
    problems = torch.arange(len(flat), device=flat.device)

    def words(at: Tensor) -> Tensor:
        order[problems, :, at] = 2**31 - 1
        word: Tensor = order[problems, at].long() << CODE_BITS | codes[at]
        return word.view(torch.float64)

    lower, higher = _ends(_prim(words, len(flat), nodes, flat.device))
    return torch.stack([lower, higher], -1).reshape(*batch, nodes - 1, 2)


def cross_edges(base: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Count the tree's edges that join the two samples, for several point sets on common bases.

    On a CPU Prim's algorithm in PyTorch; on CUDA a Triton kernel, and Borůvka's algorithm in PyTorch
    where Triton does not work. Memory is bounded: as many problems at a time as there is room for.

    Parameters
    ----------
    base
        ``(N, N)`` or ``(P, N, N)`` squared distances that all problems share, symmetric.
    points
        ``(B, N, a)`` further coordinates of each problem. The squared distance of nodes i and j in
        problem (p, b) is ``base[p, i, j] + |points[b, i] - points[b, j]|^2``, in float32.
    labels
        ``(N,)`` bool: which sample a node comes from.

    Returns
    -------
    Tensor
        ``(B,)`` or ``(P, B)`` int64, each between 1 and N - 1 when both samples are there.

    Raises
    ------
    MintError
        Shapes that do not fit, too many nodes, values that are negative, not finite or too large.
    """
    if base.ndim not in (2, 3) or points.ndim != 3:
        raise MintError(
            f"base and points must be (N, N) or (P, N, N), and (B, N, a), not {tuple(base.shape)} "
            f"and {tuple(points.shape)}."
        )
    bases, points = base.float().reshape(-1, *base.shape[-2:]), points.float()
    if not points.shape[2]:
        points = points.new_zeros(*points.shape[:2], 1)
    _check(bases, points, labels)
    return _counter(base.device)(bases, points, labels).reshape(*base.shape[:-2], len(points))


def _counter(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if device.type == "cpu":
        return cross_edges_by_prim
    if _triton_works(device):
        from mint_compress.estimators.mst_triton import cross_edges_by_triton

        return cross_edges_by_triton
    from mint_compress.estimators.mst_boruvka import cross_edges_by_boruvka

    return cross_edges_by_boruvka


def _check(bases: Tensor, points: Tensor, labels: Tensor) -> None:
    nodes = len(labels)
    if bases.shape[1] != bases.shape[2]:
        raise MintError(f"base must be square, not {tuple(bases.shape[1:])}.")
    if not bases.shape[1] == points.shape[1] == nodes > 0:
        raise MintError(
            f"base, points and labels are for {bases.shape[1]}, {points.shape[1]} and {nodes} nodes. "
            "Give the same number, at least one, to all."
        )
    _check_nodes(nodes)
    if bases.numel() and points.numel():
        least, most = bases.aminmax()
        reach = float(most) + 4 * points.shape[2] * float(points.abs().amax()) ** 2
        if not (least >= 0 and reach < LARGEST):  # so that NaN is refused too
            raise MintError(
                "The squared distances of a spanning tree must be finite, not negative and below "
                f"{LARGEST:g}. Scale the columns to unit variance."
            )


def _check_nodes(nodes: int) -> None:
    if nodes > MOST_NODES:
        raise MintError(f"{nodes} rows are too many for a spanning tree: at most {MOST_NODES}. Draw fewer.")


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether a first small problem goes through: Triton may be there without the compiler it needs."""
    if find_spec("triton") is None:
        return False
    labels = torch.tensor([True, False], device=device)
    base = torch.zeros(1, 2, 2, device=device)
    try:
        from mint_compress.estimators.mst_triton import cross_edges_by_triton

        return cross_edges_by_triton(base, base[..., :1], labels).item() == 1
    except Exception as error:  # a compiler or a driver that is missing shows itself in many ways
        log.warning("Triton does not work here (%s); spanning trees take longer.", error)
        return False


def cross_edges_by_prim(bases: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Count the trees' edges that join the two samples, as :func:`cross_edges` does.

    Parameters
    ----------
    bases
        ``(P, N, N)`` float32 squared distances.
    points
        ``(B, N, a)`` float32 further coordinates, at least one.
    labels
        ``(N,)`` bool.

    Returns
    -------
    Tensor
        ``(P, B)`` int64.
    """
    problems, nodes = points.shape[:2]
    codes = _edge_codes(nodes, bases.device)
    blocks = points.chunk(max(1, -(-problems * nodes // NODES_AT_ONCE)))
    crossing = torch.empty(len(bases), problems, dtype=torch.int64, device=bases.device)
    for base, counts in zip(bases, crossing, strict=True):
        done = 0
        for block in blocks:
            words = _prim(_words_of_sums(base, block, codes), len(block), nodes, base.device)
            lower, higher = _ends(words)
            counts[done : done + len(block)] = (labels[lower] != labels[higher]).sum(1)
            done += len(block)
    return crossing


def _words_of_sums(base: Tensor, points: Tensor, codes: Tensor) -> Callable[[Tensor], Tensor]:
    """Words of one step from the shared distances and the problems' own coordinates."""
    coordinates = points.permute(2, 0, 1).clone(memory_format=torch.contiguous_format).unbind()
    row, difference = torch.empty_like(coordinates[0]), torch.empty_like(coordinates[0])
    code = torch.empty_like(row, dtype=torch.int32)
    code64 = torch.empty_like(row, dtype=torch.int64)
    word = torch.empty_like(row, dtype=torch.float64)
    bits = word.view(torch.int64)

    def words(at: Tensor) -> Tensor:
        column = at.unsqueeze(1)
        torch.index_select(base, 0, at, out=row)
        for coordinate in coordinates:
            here = coordinate.gather(1, column)
            if coordinate is coordinates[0]:
                coordinate.scatter_(1, column, FAR)
            torch.sub(coordinate, here, out=difference)
            # not addcmul: whether that is fused, and rounded once, depends on the device
            row.add_(difference.mul_(difference))
        # every pass is of one type: what PyTorch has to convert on the way is not vectorised
        torch.index_select(codes, 0, at, out=code)
        code64.copy_(code)
        word.copy_(row)
        bits.bitwise_or_(code64)
        return word

    return words


def _prim(words: Callable[[Tensor], Tensor], problems: int, nodes: int, device: torch.device) -> Tensor:
    """``(problems, nodes - 1)`` int64 words of the tree's edges.

    ``words(at)`` gives ``(problems, nodes)`` float64 for the edges from node ``at[b]`` of problem b to
    all nodes. Nodes that it was called with, this one included, must come out above every true edge.
    """
    best = torch.full((problems, nodes), torch.inf, dtype=torch.float64, device=device)
    chosen = torch.empty(nodes - 1, problems, dtype=torch.float64, device=device)
    bits = chosen.view(torch.int64)
    at = torch.zeros(problems, dtype=torch.int64, device=device)
    for least, edge in zip(chosen.unbind(), bits.unbind(), strict=True):
        best.scatter_(1, at.unsqueeze(1), torch.inf)
        torch.minimum(best, words(at), out=best)
        torch.amin(best, 1, out=least)
        at = _newer_end(edge)
    return bits.T


def _edge_codes(nodes: int, device: torch.device) -> Tensor:
    """``(N, N)`` int32: lower index, higher index, and whether the column is the higher one."""
    column = torch.arange(nodes, dtype=torch.int32, device=device)
    row = column[:, None]
    # of the two ways to write an edge down, the smaller has the lower index first
    row_first = (row << INDEX_BITS + 1) + ((column << 1) + 1)
    column_first = (column << INDEX_BITS + 1) + (row << 1)
    return torch.minimum(row_first, column_first, out=column_first)


def _ends(words: Tensor) -> tuple[Tensor, Tensor]:
    return words >> INDEX_BITS + 1 & MOST_NODES - 1, words >> 1 & MOST_NODES - 1


def _newer_end(words: Tensor) -> Tensor:
    """The end that joins the tree: the column of the edge's code."""
    end: Tensor = words >> INDEX_BITS + 1 - INDEX_BITS * (words & 1) & MOST_NODES - 1
    return end
