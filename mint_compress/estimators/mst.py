"""Exact minimum spanning trees on dense distances: Prim's algorithm, many problems at a time.

Edges are compared by (weight, lower index, higher index). No two edges are equal in that order, so
the tree is unique, whatever ties there are: rows that are duplicates of one another stay connected by
edges of length zero, and the answer does not depend on the algorithm or on the device.

Every step works on one word per node: the weight's bits above the edge's number. Bits of float32
numbers that are not negative sort like the numbers themselves, so one minimum does it all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mint_compress.errors import MintError

MOST_NODES = 2**16
"""An edge's number is its lower index, shifted by 16 bits, and its higher one."""

LOW = 2**16 - 1


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
        Not square, empty, or values that are no distances.
    """
    batch, nodes = distances.shape[:-2], distances.shape[-1]
    if distances.ndim < 2 or distances.shape[-2] != nodes or not nodes:
        raise MintError(f"distances must be (..., N, N), not {tuple(distances.shape)}.")
    if not bool((torch.isfinite(distances) & (distances >= 0)).all()):
        raise MintError("distances must be finite and not negative. Check what they were computed from.")
    flat = distances.reshape(-1, nodes, nodes)
    if flat.dtype == torch.float64:
        # ranks sort like the distances, ties included, and fit where 64 bits do not
        order = torch.unique(flat, return_inverse=True)[1].to(torch.int32)
    else:
        order = (flat.float() + 0.0).view(torch.int32)  # -0.0 would sort below everything
    problems = torch.arange(len(flat), device=flat.device)
    edges = _prim(lambda at: order[problems, at[:, 0]], len(flat), nodes, flat.device)
    return torch.stack([edges >> 16, edges & LOW], -1).reshape(*batch, nodes - 1, 2)


def cross_edges(base: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Count the tree's edges that join the two samples, for several point sets on a common base.

    Parameters
    ----------
    base
        ``(N, N)`` squared distances that all problems share.
    points
        ``(B, N, a)`` further coordinates of each problem. The squared distance of nodes i and j in
        problem b is ``base[i, j] + |points[b, i] - points[b, j]|^2``, in float32.
    labels
        ``(N,)`` bool: which sample a node comes from.

    Returns
    -------
    Tensor
        ``(B,)`` int64, each between 1 and N - 1 when both samples are there.
    """
    base = base.float().contiguous()
    coordinates = points.float().permute(2, 0, 1).contiguous()

    def rows(at: Tensor) -> Tensor:
        row = base.index_select(0, at[:, 0])
        for coordinate in coordinates:
            difference = coordinate - coordinate.gather(1, at)
            row.addcmul_(difference, difference)
        return row.view(torch.int32)

    nodes = len(base)
    edges = _prim(rows, len(points), nodes, base.device)
    return (labels[edges >> 16] != labels[edges & LOW]).sum(1)


def _prim(rows: Callable[[Tensor], Tensor], problems: int, nodes: int, device: torch.device) -> Tensor:
    """``(problems, nodes - 1)`` edges, the lower index shifted by 16 bits above the higher one.

    ``rows(at)`` gives ``(problems, nodes)`` int32 that sort like the distances from node ``at[b, 0]``
    to all nodes of problem b.
    """
    if nodes > MOST_NODES:
        raise MintError(f"{nodes} rows are too many for a spanning tree: at most {MOST_NODES}. Draw fewer.")
    never = torch.iinfo(torch.int64).max
    numbers = torch.arange(nodes, device=device)
    shifted = numbers << 16
    best = torch.full((problems, nodes), never, device=device)  # best edge from the tree to each node
    inside = torch.zeros_like(best)
    word = torch.empty_like(best)
    edges = torch.empty(problems, nodes - 1, dtype=torch.int64, device=device)
    at = torch.zeros(problems, 1, dtype=torch.int64, device=device)
    for step in range(nodes - 1):
        inside.scatter_(1, at, never)
        lower, higher = torch.minimum(at << 16, shifted), torch.maximum(at, numbers)
        word.copy_(rows(at)).bitwise_left_shift_(32).bitwise_or_(lower).bitwise_or_(higher)
        torch.minimum(best, word, out=best)
        edge, at = torch.bitwise_or(best, inside, out=word).min(1, keepdim=True)
        edges[:, step] = edge[:, 0]
    return edges & 0xFFFFFFFF
