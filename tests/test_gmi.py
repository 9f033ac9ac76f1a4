"""Geometric mutual information: known values, the null, conditioning, ties."""

import math

import pytest
import torch
from reference import crossing, kruskal
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.gmi import _pool, gmi


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(rho: float, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    rows_of_both = draw(seed, rows, 2)
    y = rows_of_both[:, :1]
    return rho * y + math.sqrt(1 - rho**2) * rows_of_both[:, 1:], y


def agrees(estimates: Tensor, expected: float) -> bool:
    """Whether the mean over seeds is within 4 standard errors."""
    error = (estimates.mean() - expected).abs()
    return bool(error < 4 * estimates.std() / math.sqrt(len(estimates)))


# 20 seeds: the mean's standard error is about .005, so .02 is four of them. The divergence itself,
# 1 - 2 * integral of f g / (f + g), is .352 and .068; with this many rows estimates are a little low.
@pytest.mark.parametrize("rho, expected", [(0.9, 0.346), (0.5, 0.061)])
def test_known_values_of_correlated_pairs(rho: float, expected: float) -> None:
    estimates = [gmi(*pair(rho, 2500, seed), conditioning="none", noise=0, seed=seed) for seed in range(20)]
    assert float(torch.cat(estimates).mean()) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("conditioning", ["none", "residual"])
def test_independent_columns_scatter_around_zero(conditioning: str) -> None:
    estimates = torch.stack(
        [
            gmi(draw(seed, 240, 4), draw(1000 + seed, 240, 2), conditioning=conditioning, seed=seed)
            for seed in range(30)
        ]
    )
    assert agrees(estimates.mean((1, 2)), 0)
    assert bool((estimates < 0).any())  # not clamped


def test_raw_is_too_high_for_independent_columns_and_falls_with_the_rows() -> None:
    def mean(rows: int, seeds: int) -> float:
        runs = [
            gmi(draw(seed, rows, 4), draw(1000 + seed, rows, 2), conditioning="raw", seed=seed)
            for seed in range(seeds)
        ]
        return float(torch.stack(runs).mean())

    few, many = mean(120, 20), mean(1200, 3)
    assert 0.01 < many < few < 0.12


def test_ties_do_not_bias_the_null() -> None:
    # like rectified channels: most rows are exact copies of one another
    estimates = []
    for seed in range(60):
        x, y = draw(seed, 120, 1), draw(1000 + seed, 120, 1)
        estimates.append(gmi((x - 1).relu(), (y - 1).relu(), conditioning="none", noise=0, seed=seed)[0])
    assert agrees(torch.cat(estimates), 0)


def test_shuffled_pairing_destroys_the_dependence() -> None:
    x, y = pair(0.95, 600, 3)
    assert float(gmi(x, y)) > 0.3
    assert abs(float(gmi(x, y[draw(4, 600).argsort()]))) < 0.15  # standard deviation .04


@pytest.mark.parametrize("conditioning", ["none", "raw", "residual"])
def test_one_pair_is_the_statistic_on_kruskals_tree(conditioning: str) -> None:
    x, y = pair(0.8, 61, 5)
    found = gmi(x, y, conditioning=conditioning, noise=0, ridge=0, seed=7)
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(61, generator=generator)
    rows, source, null = _pool(y[:, :0], order, torch.rand(61, generator=generator))
    assert (int(null.sum()), len(null)) == (31, 61)  # a single parent group: halves in every mode
    unit = [(v - v.mean()) / v.std(correction=0) for v in (x, y)]
    points = torch.cat([unit[0][rows], unit[1][source]], 1)
    count = crossing(kruskal((points[:, None] - points[None]).square().sum(-1)), null)
    assert float(found) == pytest.approx(1 - count * 61 / (2 * 30 * 31), abs=1e-12)


def test_null_pairs_take_the_parent_of_another_null_row() -> None:
    order, mix = draw(8, 41).argsort(), draw(9, 41)
    rows, source, null = _pool(torch.zeros(41, 0), order, mix)
    assert rows.sort().values.tolist() == list(range(41))
    assert rows[~null].equal(source[~null]) and len(rows[~null]) == 20
    assert not bool((rows[null] == source[null]).any())
    assert set(rows[null].tolist()) == set(source[null].tolist())


def test_raw_donors_are_the_nearest_of_a_third_of_their_own() -> None:
    others, order, mix = draw(10, 62, 2), draw(11, 62).argsort(), draw(12, 62)
    rows, source, null = _pool(others, order, mix)
    real, nulls = set(rows[~null].tolist()), set(rows[null].tolist())
    donors = set(range(62)) - real - nulls
    assert (len(real), len(nulls), len(donors)) == (20, 20, 22)
    assert rows[~null].equal(source[~null])
    for row, donor in zip(rows[null].tolist(), source[null].tolist(), strict=True):
        assert donor == min(donors, key=lambda d: float((others[row] - others[d]).norm()))


def chain(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Children of column 0 and of column 1, where column 1 is a noisy copy of column 0."""
    z = draw(seed, rows, 1)
    y = 0.8 * z + 0.6 * draw(1000 + seed, rows, 1)
    noise = draw(2000 + seed, rows, 2)
    return torch.cat([0.8 * z + 0.6 * noise[:, :1], y + 0.4 * noise[:, 1:]], 1), torch.cat([z, y], 1)


def test_conditioning_sees_the_direct_link_only() -> None:
    found = {
        mode: torch.stack([gmi(*chain(600, s), conditioning=mode, seed=s) for s in range(8)])
        for mode in ("none", "raw", "residual")
    }
    # child 0 hangs on parent 0 and child 1 on parent 1; alone, the other parent tells of it too
    assert bool((found["none"].mean(0) > 0.08).all())
    assert agrees(found["residual"][:, 0, 1], 0) and agrees(found["residual"][:, 1, 0], 0)
    assert bool((found["residual"].mean(0).diagonal() > 0.04).all())
    # raw is too high throughout, but child 1 is nearly its parent 1, which is enough
    raw = found["raw"].mean(0)
    assert float(raw[1, 1]) > float(raw[1, 0]) + 0.1
    assert float(raw[1, 0]) < float(found["none"].mean(0)[1, 0]) - 0.03


def test_among_many_parents_only_the_residuals_show_a_link() -> None:
    """A link of 1 nat (partial correlation .93), with 100 other parents of which the child knows too."""
    y = draw(20, 1200, 101)
    signal = math.sqrt(math.e**2 - 1)
    x = signal * y[:, :1] + y[:, 1:].sum(1, keepdim=True) / 10 + draw(21, 1200, 1)
    labels = torch.ones(101, dtype=torch.int64)
    labels[0] = 0
    raw, residual = (
        float(gmi(x, y, parent_groups=labels, conditioning=mode, noise=0)[0, 0])
        for mode in ("raw", "residual")
    )
    assert abs(raw) < 0.1  # two standard deviations of pure noise
    assert residual > 0.3


def test_observation_noise_ranks_the_parents_of_a_determined_child() -> None:
    y, weight = draw(30, 1000, 5), torch.tensor([0.0, 0.15, 0.4, 0.8, 1.6], dtype=torch.float64)
    x = (y @ weight)[:, None]
    noisy, exact = gmi(x, y)[0], gmi(x, y, noise=0)[0]
    assert bool((noisy.diff() > 0.03).all())
    assert bool((exact[1:] > 0.85).all())  # without it, all that matter at all look alike


def test_a_copy_leaves_nothing_to_tell() -> None:
    x, y = pair(0.9, 600, 40)
    twice = torch.cat([y, y], 1)
    for noise in (0.0, 1e-2):
        assert bool((gmi(x, twice, noise=noise).abs() < 0.15).all())
        assert bool((gmi(y, twice, noise=noise).abs() < 0.15).all())


def test_groups_are_told_from_their_joint_columns() -> None:
    y = draw(50, 500, 6)
    x = torch.cat([y[:, :2] + 0.3 * draw(51, 500, 2), draw(52, 500, 1)], 1)
    labels = torch.tensor([0, 1, 0, 1, 2, 2])
    found = gmi(x, y, child_groups=torch.tensor([1, 1, 0]), parent_groups=labels)
    assert found.shape == (2, 3) and found.dtype == torch.float64
    assert bool((found[1, :2] > 0.15).all())
    assert bool((found[0].abs() < 0.15).all()) and abs(float(found[1, 2])) < 0.15


def test_a_narrow_group_beside_a_wide_one_is_what_it_is_alone() -> None:
    x, y = draw(53, 100, 4), draw(54, 100, 2)
    x[:, 3:] += y[:, :1]
    beside = gmi(x, y, child_groups=torch.tensor([1, 1, 1, 0]), conditioning="none", noise=0)
    for group, columns in enumerate([x[:, 3:], x[:, :3]]):
        alone = gmi(
            columns,
            y,
            child_groups=torch.zeros(columns.shape[1], dtype=torch.int64),
            conditioning="none",
            noise=0,
        )
        assert beside[group].equal(alone[0])


def test_units_do_not_matter() -> None:
    x, y = chain(200, 60)
    # powers of two: exact, so that not even a tie moves
    assert gmi(x * 4096, y / 1024).equal(gmi(x, y))


def test_seed_and_nothing_else_decides() -> None:
    x, y = chain(200, 70)
    torch.manual_seed(1)
    first = gmi(x, y, seed=5)
    state = torch.get_rng_state()
    assert gmi(x, y, seed=5).equal(first)
    assert torch.get_rng_state().equal(state)
    assert not gmi(x, y, seed=6).equal(first)


def test_progress_counts_pairs() -> None:
    calls: list[tuple[str, int, int]] = []
    gmi(draw(0, 20, 3), draw(1, 20, 4), progress=lambda *call: calls.append(call))
    assert calls == [("gmi", 3, 12), ("gmi", 6, 12), ("gmi", 9, 12), ("gmi", 12, 12)]


def test_what_cannot_work_is_refused() -> None:
    x, y = draw(0, 20, 2), draw(1, 20, 3)
    with pytest.raises(MintError, match=r"Unknown conditioning 'rw'. Choose from: residual, raw, none."):
        gmi(x, y, conditioning="rw")
    with pytest.raises(MintError, match="5 rows are too few"):
        gmi(x[:5], y[:5], conditioning="none")
    with pytest.raises(MintError, match="20 rows are too few to regress 19 parent columns out"):
        gmi(x, draw(2, 20, 19))
    with pytest.raises(MintError, match="noise must be a finite number, at least 0, not -1"):
        gmi(x, y, noise=-1)
