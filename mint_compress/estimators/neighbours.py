"""The directed graph of the k nearest neighbours on dense distances, many problems at a time.

Neighbours are compared by (distance, index): the graph is unique, whatever ties there are, and rows
that are duplicates of one another are at distance zero, as in :mod:`mint_compress.estimators.mst`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.estimators.memory import at_once

CACHED = 2**18
"""Distances worked on at a time on a CPU, so that they stay in its cache."""


def cross_neighbours(base: Tensor, points: Tensor, labels: Tensor, *, neighbours: int) -> Tensor:
    """Count the nodes' nearest neighbours that are of the other sample, for several point sets.

    Parameters
    ----------
    base, points, labels
        ``(N, N)``, ``(B, N, a)`` and ``(N,)``, as in :func:`mint_compress.estimators.mst.cross_edges`.
    neighbours
        Out-degree of every node, at most N - 1.

    Returns
    -------
    Tensor
        ``(B,)`` int64, each at most ``N * neighbours``.
    """
    base = base.float() + 0.0  # a copy; and -0.0 becomes 0.0, whose bits sort
    base.fill_diagonal_(torch.inf)
    nodes = len(base)
    lines = at_once(48 * nodes, base.device, most=CACHED // nodes if base.device.type == "cpu" else None)
    counts = []
    for some in points.float().split(max(1, lines // nodes)):
        crossing = torch.zeros(len(some), dtype=torch.int64, device=base.device)
        for start in range(0, nodes, lines):
            own = slice(start, min(start + lines, nodes))
            nearest = _nearest(_distances(base[own], some[:, own], some), neighbours)
            crossing += (labels[nearest] != labels[own, None]).sum((1, 2))
        counts.append(crossing)
    return torch.cat(counts) if counts else base.new_zeros(0, dtype=torch.int64)


def _distances(base: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """``(B, r, N)`` squared distances from ``start`` ``(B, r, a)`` to ``end`` ``(B, N, a)``."""
    found = base.expand(len(end), *base.shape).clone()
    for one, other in zip(start.unbind(2), end.unbind(2), strict=True):
        difference = one[:, :, None] - other[:, None]
        found.addcmul_(difference, difference)
    return found


def _nearest(distances: Tensor, neighbours: int) -> Tensor:
    """``(..., k)`` indices of the smallest entries of each line, the lower index first among equals."""
    values, indices = distances.topk(neighbours + 1, largest=False)
    # topk picks among equals as it likes: that matters where the last one taken has an equal outside
    tied = values[..., -2] == values[..., -1]
    if bool(tied.any()):
        words = distances[tied].view(torch.int32).long() << 32
        words |= torch.arange(distances.shape[-1], device=distances.device)
        indices[tied] = words.topk(neighbours + 1, largest=False).indices
    return indices[..., :-1]
