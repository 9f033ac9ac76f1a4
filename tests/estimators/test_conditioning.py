"""The real and the null points: who stands for whom, and how far apart they are."""

import pytest
import torch
from torch import Tensor

from mint_compress.estimators.conditioning import halves, squared_distances, thirds


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_null_pairs_take_the_parent_of_another_null_row() -> None:
    order, mix = draw(8, 41).argsort(), draw(9, 41)
    rows, source, null = halves(order, mix)
    assert rows.sort().values.tolist() == list(range(41))
    assert rows[~null].equal(source[~null]) and len(rows[~null]) == 20
    assert not bool((rows[null] == source[null]).any())
    assert set(rows[null].tolist()) == set(source[null].tolist())


def test_raw_donors_are_the_nearest_of_a_third_of_their_own() -> None:
    others, order, mix = draw(10, 62, 2), draw(11, 62).argsort(), draw(12, 62)
    rows, source, null = thirds(squared_distances(others), order, mix)
    real, nulls = set(rows[~null].tolist()), set(rows[null].tolist())
    donors = set(range(62)) - real - nulls
    assert (len(real), len(nulls), len(donors)) == (20, 20, 22)
    assert rows[~null].equal(source[~null])
    for row, donor in zip(rows[null].tolist(), source[null].tolist(), strict=True):
        assert donor == min(donors, key=lambda d: float((others[row] - others[d]).norm()))


def test_donors_at_the_same_distance_take_turns() -> None:
    others = (torch.arange(90) % 2)[:, None].double()  # a switch: half of all donors are nearest
    rows, source, null = thirds(squared_distances(others), draw(13, 90).argsort(), draw(14, 90))
    assert others[rows].equal(others[source])
    assert len(set(source[null].tolist())) > 15  # of 30 donors; one for each side would be 2


@pytest.mark.parametrize("width", [3, 40])
def test_distances_are_symmetric_and_copies_are_at_zero(width: int) -> None:
    points = draw(15, 60, width).repeat(2, 1)
    found = squared_distances(points)
    assert found.equal(found.T)
    assert not found.diagonal().any() and not found.diagonal(60).any()
    assert torch.allclose(found, (points[:, None] - points[None]).square().sum(-1), rtol=1e-12, atol=1e-12)
