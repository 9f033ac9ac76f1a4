"""Geometric mutual information: known values, the null, conditioning, ties."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import crossing, kruskal
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.conditioning import CONDITIONINGS, halves, squared_distances
from mint_compress.estimators.gmi import GRAPHS, gmi


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


# 24 seeds: the mean's standard error is about .005, so .02 is four of them. The divergence itself,
# 1 - 2 * integral of f g / (f + g), is .352 and .068; with this many rows estimates are a little low.
@pytest.mark.parametrize("graph", GRAPHS)
def test_known_values_of_correlated_pairs(graph: str) -> None:
    estimates = []
    for seed in range(24):
        pairs = [pair(rho, 2500, seed) for rho in (0.9, 0.5)]  # of the same parent
        x, y = torch.cat([x for x, _ in pairs], 1), pairs[0][1]
        estimates.append(gmi(x, y, conditioning="none", graph=graph, noise=0, seed=seed)[:, 0])
    high, low = torch.stack(estimates).mean(0).tolist()
    assert (high, low) == (pytest.approx(0.346, abs=0.02), pytest.approx(0.061, abs=0.02))


def test_the_trees_null_has_mean_0_and_standard_deviation_1_over_root_n() -> None:
    rows, seeds = 600, 40
    estimates = torch.stack(
        [
            gmi(draw(seed, rows, 3), draw(1000 + seed, rows, 1), conditioning="none", graph="mst", seed=seed)
            for seed in range(seeds)
        ]
    )
    assert abs(float(estimates.mean())) < 4 / math.sqrt(rows * seeds)
    assert float(estimates.std()) == pytest.approx(1 / math.sqrt(rows), rel=0.3)


@pytest.mark.parametrize("conditioning", ["none", "residual"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_independent_columns_scatter_around_zero(conditioning: str, graph: str) -> None:
    estimates = torch.stack(
        [
            gmi(
                draw(seed, 240, 4),
                draw(1000 + seed, 240, 2),
                conditioning=conditioning,
                graph=graph,
                seed=seed,
            )
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


@pytest.mark.parametrize("graph", GRAPHS)
def test_ties_do_not_bias_the_null(graph: str) -> None:
    # like rectified channels: most rows are exact copies of one another
    estimates = []
    for seed in range(60):
        x, y = draw(seed, 120, 1), draw(1000 + seed, 120, 1)
        estimates.append(
            gmi((x - 1).relu(), (y - 1).relu(), conditioning="none", graph=graph, noise=0, seed=seed)[0]
        )
    assert agrees(torch.cat(estimates), 0)


def test_shuffled_pairing_destroys_the_dependence() -> None:
    x, y = pair(0.95, 600, 3)
    assert float(gmi(x, y)) > 0.3
    assert abs(float(gmi(x, y[draw(4, 600).argsort()]))) < 0.15  # standard deviation .04


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_pair_is_the_statistic_on_kruskals_tree(conditioning: str) -> None:
    x, y = pair(0.8, 61, 5)
    found = gmi(x, y, conditioning=conditioning, graph="mst", noise=0, ridge=0, seed=7)
    points, null = pooled(x, y, 7)
    assert (int(null.sum()), len(null)) == (31, 61)  # a single parent group: halves in every mode
    count = crossing(kruskal(squared_distances(points)), null)
    assert float(found) == pytest.approx(1 - count * 61 / (2 * 30 * 31), abs=1e-12)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_one_pair_is_the_statistic_on_its_nearest_neighbours(conditioning: str) -> None:
    x, y = pair(0.8, 61, 5)
    found = gmi(x, y, conditioning=conditioning, neighbours=7, noise=0, ridge=0, seed=7)
    points, null = pooled(x, y, 7)
    count = sum(
        bool(null[i] != null[j])
        for i in range(61)
        for j in sorted(set(range(61)) - {i}, key=lambda j: float((points[i] - points[j]).norm()))[:7]
    )
    # of all pairs of points, 30 * 31 of 61 * 60 / 2 join the samples
    assert float(found) == pytest.approx(1 - count / (61 * 7) * 61 * 60 / (2 * 30 * 31), abs=1e-12)


def pooled(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Real and null points of one pair as that seed draws them, and which are null."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    rows, source, null = halves(order, torch.rand(len(x), generator=generator))
    unit = [(v - v.mean()) / v.std(correction=0) for v in (x, y)]
    return torch.cat([unit[0][rows], unit[1][source]], 1), null


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
    assert bool((exact[1:] > 0.75).all())  # without it, all that matter at all look alike


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


@pytest.mark.parametrize("graph", GRAPHS)
def test_units_do_not_matter(graph: str) -> None:
    x, y = chain(200, 60)
    # powers of two: exact, so that not even a tie moves
    assert gmi(x * 4096, y / 1024, graph=graph).equal(gmi(x, y, graph=graph))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-50, 50),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 99),
)
def test_rescaling_a_column_changes_nothing(scale: float, shift: float, sign: int, seed: int) -> None:
    x, y = chain(60, seed)
    other = y.clone()
    other[:, 1] = sign * scale * other[:, 1] + shift
    for graph, conditioning in product(GRAPHS, CONDITIONINGS):
        estimate = partial(gmi, x, graph=graph, conditioning=conditioning, seed=seed)
        # up to an edge or two that nearly tie
        assert torch.allclose(estimate(other), estimate(y), atol=3 / 60, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_the_samples_the_answer_is_finite_or_a_clear_error(data: st.DataObject) -> None:
    """Ties, copies, constants, fewer rows than columns, one group: whole numbers of few values have all."""
    rows, c, d = (data.draw(st.integers(*bounds)) for bounds in ((2, 40), (1, 4), (1, 24)))
    x, y = (
        (
            draw(data.draw(st.integers(0, 10**6)), rows, width) * data.draw(st.sampled_from([0.3, 1, 9]))
        ).round()
        for width in (c, d)
    )
    labels = torch.arange(d) % data.draw(st.integers(1, 3))
    conditioning, graph = data.draw(st.sampled_from(CONDITIONINGS)), data.draw(st.sampled_from(GRAPHS))
    try:
        found = gmi(x, y, parent_groups=labels, conditioning=conditioning, graph=graph)
    except MintError as error:
        assert "rows are too few" in str(error)
        assert rows < 18 or rows <= d + 1
    else:
        assert bool(torch.isfinite(found).all()) and bool((found.abs() <= 1).all())


def test_rows_come_in_any_order() -> None:
    x, y = chain(120, 61)
    sorted_rows = x[:, 0].argsort()
    runs = torch.stack(
        [gmi(x, y, seed=seed) - gmi(x[sorted_rows], y[sorted_rows], seed=seed) for seed in range(30)]
    )
    assert agrees(runs[:, 0, 0], 0) and agrees(runs[:, 1, 1], 0)


def test_repeats_average_over_splits() -> None:
    x, y = pair(0.6, 200, 62)
    once, often = (
        torch.cat([gmi(x, y, repeats=repeats, seed=seed)[0] for seed in range(40)]) for repeats in (1, 8)
    )
    assert float(often.std()) < 0.6 * float(once.std())  # 1 / sqrt(8) = .35
    assert agrees(once - often, 0)


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
    gmi(draw(0, 20, 3), draw(1, 20, 2), repeats=2, progress=lambda *call: calls.append(call))
    assert calls == [("gmi", 3, 12), ("gmi", 6, 12), ("gmi", 9, 12), ("gmi", 12, 12)]


def test_what_cannot_work_is_refused() -> None:
    x, y = draw(0, 20, 2), draw(1, 20, 3)
    with pytest.raises(MintError, match=r"Unknown conditioning 'rw'. Choose from: residual, raw, none."):
        gmi(x, y, conditioning="rw")
    with pytest.raises(MintError, match=r"Unknown graph 'nn'. Choose from: knn, mst."):
        gmi(x, y, graph="nn")
    with pytest.raises(MintError, match="repeats must be a whole number, at least 1, not 0"):
        gmi(x, y, repeats=0)
    with pytest.raises(MintError, match=r"neighbours must be a whole number, at least 1, not 2\.5"):
        gmi(x, y, neighbours=2.5)  # type: ignore[arg-type]
    with pytest.raises(MintError, match="5 rows are too few for a spanning tree"):
        gmi(x[:5], y[:5], conditioning="none", graph="mst")
    with pytest.raises(MintError, match="11 rows are too few for 10 neighbours of each"):
        gmi(x[:11], y[:11], conditioning="none")
    with pytest.raises(MintError, match="20 rows are too few to regress 19 parent columns out"):
        gmi(x, draw(2, 20, 19))
    with pytest.raises(MintError, match="noise must be a finite number, at least 0, not -1"):
        gmi(x, y, noise=-1)


def test_constant_parents_need_no_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    parents = torch.cat([torch.randn(30, 3, generator=generator), torch.zeros(30, 37)], 1)
    children = parents[:, :1] + 0.1 * torch.randn(30, 1, generator=generator)
    assert gmi(children, parents).shape == (1, 40)
