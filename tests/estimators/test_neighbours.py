"""Nearest neighbours against sorting, duplicate rows and ties included."""

import pytest
import torch
from torch import Tensor

from mint_compress.estimators import neighbours as module
from mint_compress.estimators.neighbours import cross_neighbours


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counted(distances: Tensor, labels: Tensor, neighbours: int) -> int:
    """Edges to the other sample, neighbours compared by (distance, index)."""
    nodes = range(len(distances))
    return sum(
        bool(labels[i] != labels[j])
        for i in nodes
        for j in sorted(set(nodes) - {i}, key=lambda j: (float(distances[i, j]), j))[:neighbours]
    )


def squared(points: Tensor) -> Tensor:
    return (points[:, None] - points[None]).square().sum(-1)


CASES = {
    "distinct": (draw(0, 40, 3), draw(1, 3, 40, 2)),
    "grid, many ties": (draw(2, 40, 2).mul(1.5).round(), draw(3, 3, 40, 1).round()),
    "every row twice": (draw(4, 20, 2).repeat(2, 1), draw(5, 3, 20, 1).repeat(1, 2, 1)),
    "rectified": ((draw(6, 40, 1) - 1).relu(), (draw(7, 3, 40, 2) - 1).relu()),
    "all rows equal": (torch.zeros(40, 2), torch.zeros(3, 40, 1)),
    "nothing but the base": (draw(8, 40, 3), torch.zeros(3, 40, 0)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("neighbours", [1, 6, 39])
@pytest.mark.parametrize("cached", [100, 40 * 40 * 2, 2**18])  # lines in pieces, two problems, all at once
def test_counts_are_those_of_sorting(
    case: str, neighbours: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED", cached)
    shared, points = CASES[case]
    labels = draw(9, 40) < 0.3
    found = cross_neighbours(squared(shared), points, labels, neighbours=neighbours)
    assert found.dtype == torch.int64
    assert found.tolist() == [counted(squared(shared) + squared(p), labels, neighbours) for p in points]


def test_the_base_is_left_as_it_was() -> None:
    base = squared(draw(10, 12, 2))
    before = base.clone()
    assert cross_neighbours(base, torch.zeros(0, 12, 1), torch.zeros(12).bool(), neighbours=3).shape == (0,)
    assert cross_neighbours(base, torch.zeros(2, 12, 1), torch.zeros(12).bool(), neighbours=3).tolist() == [
        0,
        0,
    ]
    assert base.equal(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_cuda_counts_the_same(case: str) -> None:
    shared, points = CASES[case]
    labels = draw(11, 40) < 0
    here = cross_neighbours(squared(shared), points, labels, neighbours=5)
    there = cross_neighbours(squared(shared).cuda(), points.cuda(), labels.cuda(), neighbours=5)
    assert there.tolist() == here.tolist()
