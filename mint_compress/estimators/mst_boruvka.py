"""Cross edges by Borůvka's algorithm in PyTorch: few large steps, where Prim takes many small ones.

In each round every component takes its smallest edge to another one. Edges are compared by (weight,
lower index, higher index), so no two are equal and the edges taken cannot close a cycle. A round needs
only one number per node, the smallest of its row, and the rows are computed anew, a block at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.estimators.memory import at_once

BYTES_PER_DISTANCE = 16
"""Distance, difference, whether the component is the same, and what the reduction may need."""

MOST_AT_ONCE = {"cpu": 2**19, "cuda": 2**30}
"""Distances in one block: what stays in a CPU's cache; what 32-bit indices reach."""

NONE = torch.iinfo(torch.int64).max


def cross_edges_by_boruvka(bases: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Count the trees' edges that join the two samples, as :func:`~.mst.cross_edges` does.

    Parameters and result are those of :func:`~.mst.cross_edges_by_prim`.
    """
    counts = []
    for base in bases:
        edges = spanning_edges(base, points)
        there = edges[..., 0] != edges[..., 1]
        counts.append((there & (labels[edges[..., 0]] != labels[edges[..., 1]])).sum(1))
    return torch.stack(counts) if counts else torch.zeros(0, len(points), dtype=torch.int64)


def spanning_edges(base: Tensor, points: Tensor) -> Tensor:
    """Edges of the minimum spanning tree of each point set on a common base.

    Parameters
    ----------
    base
        ``(N, N)`` float32 squared distances, finite and not negative. Of two entries that should be
        equal, (i, j) and (j, i), the larger is taken: components must agree on an edge's length.
    points
        ``(B, N, a)`` float32 further coordinates; a may be 0.

    Returns
    -------
    Tensor
        ``(B, N, 2)`` int64, lower index first, in no particular order. One of the N is no edge: it
        joins node 0 to itself.
    """
    nodes = len(base)
    base = torch.maximum(base, base.T)
    most = MOST_AT_ONCE.get(base.device.type, 2**24) // nodes
    rows = at_once(BYTES_PER_DISTANCE * nodes, base.device, most=most)
    blocks = points.split(max(1, rows // nodes))
    return torch.cat([_spanning_edges(base, some, max(1, rows // max(1, len(some)))) for some in blocks])


def _spanning_edges(base: Tensor, points: Tensor, rows: int) -> Tensor:
    problems, nodes = points.shape[:2]
    component = torch.arange(nodes, device=base.device).repeat(problems, 1)  # named after one of its nodes
    edges = component.new_zeros(problems, nodes, 2)
    while not bool((component == component[:, :1]).all()):
        smallest = _smallest_edges(base, points, component, rows)
        smallest = torch.full_like(smallest, NONE).scatter_reduce_(1, component, smallest, "amin")
        joins = smallest < NONE
        ends = torch.stack([smallest >> 16 & 0xFFFF, smallest & 0xFFFF], -1).masked_fill(~joins[..., None], 0)
        first, second = (component.gather(1, ends[..., end]) for end in (0, 1))
        own = torch.arange(nodes, device=base.device).expand_as(component)
        towards = torch.where(joins, first + second - own, own)
        # two components that took the same edge: one of them stays
        stays = (towards.gather(1, towards) == own) & (own < towards)
        towards = torch.where(stays, own, towards)
        edges = torch.where((towards != own)[..., None], ends, edges)
        for _ in range(nodes.bit_length()):
            towards = towards.gather(1, towards)
        component = towards.gather(1, component)
    return edges


def _smallest_edges(base: Tensor, points: Tensor, component: Tensor, rows: int) -> Tensor:
    """``(B, N)`` words of each node's smallest edge to another component; NONE where there is none."""
    columns = torch.arange(len(base), device=base.device)
    words = torch.empty_like(component)
    for start in range(0, len(base), rows):
        block = slice(start, start + rows)
        distance = base[block].repeat(len(points), 1, 1)
        for coordinate in points.unbind(2):
            # squared, then added: a fused multiply-add could differ between (i, j) and (j, i)
            difference = coordinate[:, block, None] - coordinate[:, None]
            distance += difference.square_()
        distance.masked_fill_(component[:, block, None] == component[:, None], torch.inf)
        least, other = distance.min(2)  # the first of equal ones, as the order of edges asks
        lower, higher = torch.minimum(columns[block], other), torch.maximum(columns[block], other)
        bits = (least + 0.0).view(torch.int32).long()  # -0.0 would sort below everything
        words[:, block] = (bits << 32 | lower << 16 | higher).masked_fill(least == torch.inf, NONE)
    return words
