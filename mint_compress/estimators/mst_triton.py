"""Cross edges by Prim's algorithm as a Triton kernel: one program per pair of a base and a point set.

Import this file only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found]
import triton.language as tl  # type: ignore[import-untyped, import-not-found]
from torch import Tensor

NODES_PER_THREAD = 8
"""With 16 the kernel takes twice the registers per thread: as many programs per multiprocessor, with
half the threads to hide the latency of a row's load (registers from cuobjdump, sm_90)."""

ROUNDING = {"enable_fp_fusion": False}
"""Products are rounded before they are added, as everywhere else, so that the trees are the same."""


@triton.jit  # type: ignore[untyped-decorator, misc]
def _prim(bases, points, labels, counts, nodes, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tree grows from node 0; each lane keeps the best edge from the tree to its nodes.

    A word is the bits of the squared distance above 14 bits of lower index, 14 of higher index, and
    one that says whether the node is the higher one. Bits of float32 numbers that are not negative
    sort like the numbers.
    """
    problem, pair = tl.program_id(0), tl.program_id(1)
    base = bases + pair.to(tl.int64) * nodes * nodes
    own = points + problem.to(tl.int64) * nodes * width
    node = tl.arange(0, BLOCK)
    there = node < nodes
    never = 0x7FFFFFFFFFFFFFFF
    best = tl.full((BLOCK,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    outside = there & (node > 0)
    at = tl.full((), 0, tl.int32)
    crossing = tl.full((), 0, tl.int32)
    for _ in range(1, nodes):
        distance = tl.load(base + at.to(tl.int64) * nodes + node, mask=there, other=0.0)
        for axis in range(width):
            coordinate = own + axis * nodes
            difference = tl.load(coordinate + node, mask=there, other=0.0) - tl.load(coordinate + at)
            distance += difference * difference
        lower, higher = tl.minimum(at, node), tl.maximum(at, node)
        code = (lower << 15) | (higher << 1) | (at < node).to(tl.int32)
        word = (distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) | code.to(tl.int64)
        best = tl.minimum(best, word)
        chosen = tl.min(tl.where(outside, best, never), 0)
        lower = ((chosen >> 15) & 0x3FFF).to(tl.int32)
        higher = ((chosen >> 1) & 0x3FFF).to(tl.int32)
        crossing += (tl.load(labels + lower) != tl.load(labels + higher)).to(tl.int32)
        at = tl.where((chosen & 1) == 1, higher, lower)
        outside = outside & (node != at)
    tl.store(counts + pair.to(tl.int64) * tl.num_programs(0) + problem, crossing)


def cross_edges_by_triton(bases: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Count the trees' edges that join the two samples, as :func:`~.mst.cross_edges` does.

    Distances are computed on the fly; beside the arguments only the counts take memory.

    Parameters and result are those of :func:`~.mst.cross_edges_by_prim`.
    """
    pairs, (problems, nodes, width) = len(bases), points.shape
    counts = torch.zeros(pairs, problems, dtype=torch.int32, device=bases.device)
    if counts.numel():
        block = triton.next_power_of_2(nodes)
        warps = min(32, max(1, block // (32 * NODES_PER_THREAD)))
        with torch.cuda.device_of(bases):  # Triton launches on the current device
            _prim[(problems, pairs)](
                bases.contiguous(),
                points.transpose(1, 2).contiguous(),
                labels.to(torch.int32),
                counts,
                nodes,
                width,
                BLOCK=block,
                num_warps=warps,
                **ROUNDING,
            )
    return counts.long()
