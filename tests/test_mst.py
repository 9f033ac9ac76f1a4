"""Spanning trees against Kruskal, with the contract's tie order, and against scipy."""

import pytest
import torch
from reference import crossing, kruskal
from scipy.sparse.csgraph import minimum_spanning_tree as scipy_tree
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.mst import cross_edges, minimum_spanning_tree


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def squared(points: Tensor) -> Tensor:
    return (points[:, None] - points[None]).square().sum(-1)


def edge_set(edges: Tensor) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in edges}


CASES = {
    "distinct": squared(draw(0, 31, 3)),
    "grid, many ties": squared(draw(1, 40, 2).mul(1.5).round()),
    "every row twice": squared(draw(2, 15, 3).repeat(2, 1)),
    "duplicates in clusters": squared(draw(3, 6, 2).repeat_interleave(5, 0)[draw(9, 30).argsort()]),
    "all rows equal": torch.zeros(20, 20, dtype=torch.float64),
    "one constant distance": torch.ones(12, 12, dtype=torch.float64) - torch.eye(12, dtype=torch.float64),
    "negative zeros": torch.block_diag(*[-torch.zeros(k, k, dtype=torch.float64) for k in (3, 4)]),
    "two nodes": squared(draw(4, 2, 1)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_those_of_kruskal(case: str, dtype: torch.dtype) -> None:
    distances = CASES[case].to(dtype)
    edges = minimum_spanning_tree(distances)
    assert edges.shape == (len(distances) - 1, 2)
    assert bool((edges[:, 0] < edges[:, 1]).all())
    assert edge_set(edges) == kruskal(distances)


def test_ties_follow_the_indices_not_the_order_of_growth() -> None:
    # from node 0 the tree reaches 3 first; then (1, 3) and (2, 3) tie, and close a cycle with (1, 2)
    distances = torch.full((4, 4), 9.0)
    for i, j, d in [(0, 3, 1), (1, 3, 2), (2, 3, 2), (1, 2, 2)]:
        distances[i, j] = distances[j, i] = d
    assert edge_set(minimum_spanning_tree(distances)) == {(0, 3), (1, 2), (1, 3)}


def test_float64_tells_apart_what_float32_cannot() -> None:
    a, b = 1 + 2e-12, 1 + 1e-12
    distances = torch.tensor([[0, a, 1], [a, 0, b], [1, b, 0]], dtype=torch.float64)
    assert edge_set(minimum_spanning_tree(distances)) == {(0, 2), (1, 2)}
    assert edge_set(minimum_spanning_tree(distances.float())) == {(0, 1), (0, 2)}


def test_batch_is_one_problem_after_the_other() -> None:
    many = torch.stack([squared(draw(seed, 17, 2)) for seed in range(6)]).reshape(2, 3, 17, 17)
    edges = minimum_spanning_tree(many)
    assert edges.shape == (2, 3, 16, 2)
    for i in range(2):
        for j in range(3):
            assert edge_set(edges[i, j]) == kruskal(many[i, j])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_those_of_scipy_where_nothing_ties(dtype: torch.dtype) -> None:
    distances = squared(draw(5, 400, 4)).to(dtype)
    tree = scipy_tree(distances.numpy()).tocoo()
    theirs = {(int(min(i, j)), int(max(i, j))) for i, j in zip(tree.row, tree.col, strict=True)}
    assert edge_set(minimum_spanning_tree(distances)) == theirs


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_cross_edges_are_counted_as_by_kruskal(rounded: bool, width: int) -> None:
    shared, points = draw(6, 36, 2), draw(7, 5, 36, width)
    if rounded:  # whole numbers: exact in float32, and full of ties
        shared, points = shared.round(), points.round()
    labels = draw(8, 36) < 0
    counts = cross_edges(squared(shared), points, labels)
    assert counts.dtype == torch.int64
    expected = [crossing(kruskal((squared(shared) + squared(p)).float()), labels) for p in points]
    assert counts.tolist() == expected


def test_equal_rows_hang_on_the_first() -> None:
    labels = torch.tensor([True, False, True, False, False])
    assert cross_edges(torch.zeros(5, 5), torch.zeros(2, 5, 1), labels).tolist() == [3, 3]


@pytest.mark.parametrize(
    "distances, message",
    [
        (torch.zeros(3, 4), "distances must be"),
        (torch.zeros(3), "distances must be"),
        (torch.zeros(0, 0), "distances must be"),
        (torch.full((2, 2), float("nan")), "finite and not negative"),
        (-torch.ones(2, 2), "finite and not negative"),
    ],
)
def test_what_is_no_distance_matrix_is_refused(distances: Tensor, message: str) -> None:
    with pytest.raises(MintError, match=message):
        minimum_spanning_tree(distances)


def test_one_node_has_no_edge() -> None:
    assert minimum_spanning_tree(torch.zeros(1, 1)).shape == (0, 2)
