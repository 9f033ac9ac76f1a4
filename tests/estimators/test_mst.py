"""Spanning trees against Kruskal, with the tie order of the indices, and against scipy."""

import pytest
import torch
from reference import crossing, kruskal
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import minimum_spanning_tree as scipy_tree
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import mst
from mint_compress.estimators import mst_boruvka as boruvka
from mint_compress.estimators.mst import cross_edges, minimum_spanning_tree
from mint_compress.estimators.mst_boruvka import cross_edges_by_boruvka, spanning_edges


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


def scipy_edges(distances: Tensor) -> set[tuple[int, int]]:
    tree = scipy_tree(distances.numpy()).tocoo()
    return {(int(min(i, j)), int(max(i, j))) for i, j in zip(tree.row, tree.col, strict=True)}


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
    assert edge_set(minimum_spanning_tree(distances)) == scipy_edges(distances)


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


def test_float32_trees_weigh_as_much_as_single_linkage() -> None:
    points = draw(10, 1667, 5)
    distances = squared(points).sqrt()
    lower, higher = minimum_spanning_tree(distances.float()).unbind(1)
    heights = linkage(points.numpy(), "single")[:, 2].sum()
    assert float(distances[lower, higher].sum()) == pytest.approx(heights, rel=1e-5)


def test_float32_counts_are_those_of_scipy_where_nothing_nearly_ties() -> None:
    # distances that are 64 apart, moved by less than 1
    ranks = torch.randperm(300 * 299 // 2, generator=torch.Generator().manual_seed(11)) + 1
    base = torch.zeros(300, 300, dtype=torch.float64)
    base[tuple(torch.triu_indices(300, 300, 1))] = 64 * ranks.double()
    base += base.T.clone()
    points = draw(12, 3, 300, 2).tanh() / 3
    labels = draw(13, 300) < 0
    expected = [crossing(scipy_edges(base + squared(p)), labels) for p in points]
    for count in COUNTERS:
        assert count(base.float()[None], points.float(), labels).tolist() == [expected]


def test_points_are_left_alone_and_several_bases_are_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bases = torch.stack([squared(draw(seed, 20, 2)) for seed in (14, 15, 16)]).float()
    points, labels = draw(17, 7, 20, 1, dtype=torch.float32), draw(18, 20) < 0
    before = points.clone()
    counts = cross_edges(bases, points, labels)
    assert counts.shape == (3, 7)
    assert torch.equal(points, before)
    monkeypatch.setattr(mst, "NODES_AT_ONCE", 60)  # three problems at a time, and what is left
    for base, row in zip(bases, counts, strict=True):
        assert cross_edges(base, points, labels).tolist() == row.tolist()
    assert cross_edges(bases[0], points[:0], labels).shape == (0,)
    assert cross_edges_by_boruvka(bases, points[:0], labels).shape == (3, 0)
    assert cross_edges(bases, points[..., :0], labels).tolist() == [
        [crossing(kruskal(base), labels)] * 7 for base in bases
    ]


@pytest.mark.parametrize("case", CASES)
def test_boruvka_takes_the_edges_of_kruskal(case: str) -> None:
    distances = CASES[case].float()
    assert joined(spanning_edges(distances, torch.zeros(1, len(distances), 0))[0]) == kruskal(distances)


def joined(edges: Tensor) -> set[tuple[int, int]]:
    assert int((edges[:, 0] == edges[:, 1]).sum()) == 1  # of N slots one holds no edge
    return edge_set(edges[edges[:, 0] != edges[:, 1]])


@pytest.mark.parametrize("most", [97 * 4, 97 * 40, 97 * 97 * 2])
def test_boruvka_counts_like_prim_whatever_the_blocks(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(boruvka.MOST_AT_ONCE, "cpu", most)
    shared, labels = draw(19, 97, 2, dtype=torch.float32), draw(20, 97) < 0
    for width in (1, 3):
        points = draw(21, 5, 97, width, dtype=torch.float32)
        points[1:3] = points[1:3].mul(2).round()
        points[3, 50:] = points[3, :47]
        bases = torch.stack([squared(shared), squared(shared.round()), torch.zeros(97, 97)])
        assert torch.equal(cross_edges_by_boruvka(bases, points, labels), cross_edges(bases, points, labels))


def test_boruvka_closes_no_cycle_where_the_two_halves_of_a_matrix_differ() -> None:
    base = 1 + 1e-6 * draw(22, 40, 40, dtype=torch.float32)  # asymmetric by rounding errors
    edges = joined(spanning_edges(base, torch.zeros(1, 40, 1))[0])
    assert edges == kruskal(torch.maximum(base, base.T))


COUNTERS = [mst.cross_edges_by_prim, cross_edges_by_boruvka]


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


@pytest.mark.parametrize(
    "base, points, message",
    [
        (torch.zeros(5, 5), torch.zeros(2, 4, 1), "for 5, 4 and 5 nodes"),
        (torch.zeros(5, 4), torch.zeros(2, 5, 1), "square"),
        (torch.zeros(5), torch.zeros(2, 5, 1), "must be"),
        (torch.zeros(5, 5), torch.zeros(5, 1), "must be"),
        (-torch.ones(5, 5), torch.zeros(2, 5, 1), "not negative"),
        (torch.full((5, 5), float("nan")), torch.zeros(2, 5, 1), "finite"),
        (torch.zeros(5, 5), torch.full((2, 5, 1), 1e17), "Scale the columns"),
        (torch.zeros(5, 5), torch.full((2, 5, 1), float("inf")), "finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(base: Tensor, points: Tensor, message: str) -> None:
    with pytest.raises(MintError, match=message):
        cross_edges(base, points, torch.zeros(5, dtype=torch.bool))


def test_more_nodes_than_an_edge_code_holds_are_refused() -> None:
    nodes = mst.MOST_NODES + 1
    with pytest.raises(MintError, match="at most 16384"):
        minimum_spanning_tree(torch.zeros(1, 1).expand(nodes, nodes))
    largest = mst.MOST_NODES - 1
    words = torch.tensor([(largest - 1) << 15 | largest << 1 | 1, 3 << 15 | largest << 1])
    assert [end.tolist() for end in mst._ends(words)] == [[largest - 1, 3], [largest, largest]]
    assert mst._newer_end(words).tolist() == [largest, 3]
