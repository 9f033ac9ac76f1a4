"""Nearest-neighbour mutual information: known values, the definition in plain loops, ties, the null."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import knn as module
from mint_compress.estimators.knn import _kth_smallest, knn  # folds of a size that only large inputs have


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(rho: float, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    both = draw(seed, rows, 2)
    return rho * both[:, :1] + math.sqrt(1 - rho**2) * both[:, 1:], both[:, :1]


def plainly(x: Tensor, y: Tensor, z: Tensor, k: int) -> float:
    """The definition, row by row: x, y and z are ``(n, width)``, and z may have no columns."""

    def apart(a: list[float], b: list[float]) -> float:
        return max((abs(one - other) for one, other in zip(a, b, strict=True)), default=0.0)

    def psi(count: int) -> float:  # digamma(count + 1)
        return -0.5772156649015329 + sum(1 / i for i in range(1, count + 1))

    spaces = [torch.cat(part, 1).tolist() for part in ([x, y, z], [x, z], [y, z], [z])]
    total = 0.0
    for i in range(len(x)):
        distances = [[apart(s[i], s[j]) for j in range(len(x)) if j != i] for s in spaces]
        box = sorted(distances[0])[k - 1]
        counts = [sum(d < box * (1 - 1e-5) if box > 0 else d == 0 for d in each) for each in distances]
        joint, xz, yz, z_alone = (psi(count) for count in counts)
        total += joint - xz - yz + z_alone
    return total / len(x)


def standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0, correction=0)


def rounded(values: Tensor) -> Tensor:
    """Like rectified and quantised channels: most rows have equals in every column."""
    return (values.relu() * 2).round()


def agrees(estimates: list[float], expected: float) -> bool:
    """Whether the mean over seeds is within 4 standard errors."""
    found = torch.tensor(estimates)
    return bool((found.mean() - expected).abs() < 4 * found.std() / math.sqrt(len(found)))


@pytest.mark.parametrize("tied", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("k", [1, 4])
def test_every_pair_is_what_the_definition_says(k: int, tied: bool) -> None:
    x, y = draw(0, 37, 3), draw(1, 37, 4)
    x[:, :2] += y[:, :2]
    if tied:
        x, y = rounded(x), rounded(y)
    q, p = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 2, 1])
    found = knn(x, y, child_groups=q, parent_groups=p, neighbours=k, noise=0)
    x, y = standardised(x), standardised(y)
    for child in range(2):
        for parent in range(3):
            expected = plainly(x[:, q == child], y[:, p == parent], y[:, p != parent], k)
            assert float(found[child, parent]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tied", [False, True], ids=["no ties", "ties"])
def test_a_single_parent_group_is_the_estimator_without_conditioning(tied: bool) -> None:
    x, y = pair(0.7, 60, 3)
    y = torch.cat([y, draw(4, 60, 1)], 1)
    if tied:
        x, y = rounded(x), rounded(y)
    found = knn(x, y, parent_groups=torch.tensor([0, 0]), neighbours=3, noise=0)
    assert float(found) == pytest.approx(plainly(standardised(x), standardised(y), y[:, :0], 3), abs=1e-12)


def test_it_does_not_matter_what_is_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(5, 150, 5), draw(6, 150, 3)
    x[:, :3] += y
    labels = torch.tensor([0, 1, 1, 2, 3])
    whole = knn(x, y, child_groups=labels, neighbours=2)
    for elements in (1, 900, 10_000, 2**22):
        monkeypatch.setattr(module, "CACHED", elements)
        assert knn(x, y, child_groups=labels, neighbours=2).allclose(whole, rtol=0, atol=1e-12)
    monkeypatch.setattr(module, "FOLD", 10**6)  # select from all values at once
    assert knn(x, y, child_groups=labels, neighbours=2).allclose(whole, rtol=0, atol=1e-12)


def test_the_short_selections_find_the_same_value_as_a_sort() -> None:
    values = torch.cat([draw(7, 3, 20, 96), draw(8, 3, 20, 96).round()], 1)
    values[0, :, 40:] = math.inf
    for fold in (1, 8, 32):
        for k in (1, 2, 3):
            assert _kth_smallest(values, k, fold).equal(values.sort(-1).values[..., k - 1])


# The values at n = 2500: 20 seeds of standard deviation .02 to .03 leave .007 of standard error.
@pytest.mark.parametrize("rho, expected, tolerance", [(0.5, 0.1438, 0.02), (0.9, 0.8304, 0.03)])
def test_information_of_correlated_pairs(rho: float, expected: float, tolerance: float) -> None:
    found = [float(knn(*(v.float() for v in pair(rho, 2500, seed)), noise=0)) for seed in range(20)]
    assert sum(found) / len(found) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("rho, expected, tolerance", [(0.5, 0.142, 0.02), (0.9, 0.829, 0.03)])
def test_information_given_a_common_cause(rho: float, expected: float, tolerance: float) -> None:
    found = []
    for seed in range(20):
        z = draw(100 + seed, 2500, 1).float()
        x, y = (part.float() + z for part in pair(rho, 2500, seed))
        # each of two parent groups is scored; the first is y given z
        found.append(float(knn(x, torch.cat([y, z], 1), noise=0)[0, 0]))
    assert sum(found) / len(found) == pytest.approx(expected, abs=tolerance)


def test_independent_columns_scatter_around_zero() -> None:
    found = [knn(draw(s, 200, 2), draw(1000 + s, 200, 2), noise=0).mean() for s in range(30)]
    assert agrees([float(f) for f in found], 0)
    assert min(found) < 0  # not clamped


@pytest.mark.parametrize("noise", [0, 1e-2])
def test_ties_are_no_information(noise: float) -> None:
    found = []
    for seed in range(40):
        x, y = (draw(1000 * side + seed, 200, 1) - 0.7 for side in (1, 2))
        found.append(float(knn(x.relu(), y.relu(), noise=noise)))
    assert abs(sum(found) / 40) < 0.015


def test_information_of_two_bits_that_agree_nine_times_of_ten() -> None:
    found = []
    for seed in range(20):
        y = draw(seed, 500, 1) > 0
        flipped = torch.rand(500, 1, generator=torch.Generator().manual_seed(1000 + seed)) < 0.1
        found.append(float(knn((y ^ flipped).double(), y.double(), noise=0)))
    truth = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert agrees(found, truth) and sum(found) / 20 == pytest.approx(truth, abs=0.04)


def test_a_nonlinear_link_is_seen_and_a_nonlinear_common_cause_is_not() -> None:
    z, y = draw(10, 800, 1), draw(11, 800, 1)
    x = torch.cat([y.square() + 0.3 * draw(12, 800, 1), z.square() + 0.3 * draw(13, 800, 1)], 1)
    found = knn(x, torch.cat([y + 0 * z, z], 1))
    assert bool((found.diagonal() > 0.4).all())
    caused = z.square() + 0.3 * y
    assert abs(float(knn(x[:, 1:], torch.cat([caused, z], 1))[0, 0])) < 0.1  # .7 nats without z


@pytest.mark.parametrize("tied", [False, True], ids=["no ties", "ties"])
@settings(max_examples=15, deadline=None)
@given(seed=some.integers(0, 10**6), scale=some.floats(0.01, 100), shift=some.floats(-5, 5))
def test_units_order_and_sides_do_not_matter(tied: bool, seed: int, scale: float, shift: float) -> None:
    x, y = pair(0.8, 60, seed)
    z = draw(seed + 1, 60, 1)
    if tied:
        x, y, z = rounded(x), rounded(y), rounded(z)
    parents = torch.cat([y, z], 1)
    found = knn(x, parents, noise=0)
    order = draw(seed + 2, 60).argsort()
    assert knn(x[order], parents[order], noise=0).allclose(found, rtol=0, atol=1e-12)
    assert knn(x * scale + shift, parents * -scale, noise=0).allclose(found, rtol=0, atol=1e-9)
    back = knn(y, torch.cat([x, z], 1), noise=0)
    assert float(back[0, 0]) == pytest.approx(float(found[0, 0]), abs=1e-9)


def test_single_precision_is_near_double() -> None:
    x, y = draw(14, 500, 2), draw(15, 500, 3)
    x += y[:, :2]
    assert knn(x.float(), y.float(), noise=0).allclose(knn(x, y, noise=0), rtol=0, atol=2e-3)


def test_seed_and_nothing_else_decides() -> None:
    x, y = pair(0.5, 100, 16)
    first = knn(x, y, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert knn(x, y, seed=5).equal(first) and not knn(x, y, seed=6).equal(first)
    torch.set_rng_state(state)
    assert knn(x, y, noise=0, seed=5).equal(knn(x, y, noise=0, seed=6))  # nothing but the noise is drawn


def test_a_determined_child_and_a_copied_parent_are_finite() -> None:
    y = draw(17, 300, 2)
    exact, noisy = (float(knn(y[:, :1], y[:, :1], noise=n)) for n in (0, 1e-2))
    assert exact > 4  # grows with the rows: psi(n) - psi(5) at most
    assert noisy == pytest.approx(0.5 * math.log(101), abs=0.3)
    copied = knn(y[:, :1], y[:, [0, 0, 1]])
    assert bool((copied.abs() < 0.15).all())


def test_constant_columns_and_empty_groups_say_nothing_and_change_nothing() -> None:
    x, y = pair(0.8, 80, 18)
    y = torch.cat([y, torch.full_like(y, 3.0), draw(19, 80, 1)], 1)
    found = knn(torch.cat([torch.zeros_like(x), x], 1), y, child_groups=torch.tensor([0, 2]), noise=0)
    assert found.shape == (3, 3) and not found[:2].any() and not found[:, 1].any()
    assert found[2, [0, 2]].equal(knn(x, y[:, [0, 2]], noise=0)[0])
    assert knn(x, y[:, :0]).shape == (1, 0) and not knn(x, y[:, 1:2]).any()


def test_many_conditioning_columns_stay_finite() -> None:
    x, y = draw(20, 120, 2), draw(21, 120, 200)
    x[:, :1] += y[:, :4].sum(1, keepdim=True)
    found = knn(x, y, parent_groups=torch.arange(200) // 4)
    assert found.shape == (2, 50) and bool(torch.isfinite(found).all())


def test_progress_counts_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", 20 * 5)
    calls: list[tuple[str, int, int]] = []
    knn(draw(0, 20, 3), draw(1, 20, 4), progress=lambda *call: calls.append(call))
    assert calls == [("knn", 3, 12), ("knn", 6, 12), ("knn", 9, 12), ("knn", 12, 12)]


def test_what_cannot_work_is_refused() -> None:
    x, y = draw(0, 5, 2), draw(1, 5, 3)
    assert bool(torch.isfinite(knn(x, y, neighbours=4)).all())
    with pytest.raises(MintError, match="5 rows are too few for 5 neighbours"):
        knn(x, y)
    with pytest.raises(MintError, match="neighbours must be a whole number, at least 1, not 0"):
        knn(x, y, neighbours=0)
    with pytest.raises(MintError, match="noise must be a finite number, at least 0, not -1"):
        knn(x, y, noise=-1)
    with pytest.raises(MintError, match="parents hold NaN"):
        knn(x, y * math.nan)
