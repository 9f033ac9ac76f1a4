"""The Gaussian estimator and backward elimination against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import conditional_information, elimination, gaussian_pair, least_squares
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import elimination as module
from mint_compress.estimators.elimination import (
    Regression,
    eliminate,
    gaussian_from_moments,
    information,
    regression,
)
from mint_compress.estimators.gaussian import gaussian


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_covariance(covariance: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Rows whose sample covariance is that one, to rounding."""
    raw = draw(seed, rows, len(covariance))
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / rows)).T
    rows_of_it: Tensor = white @ torch.linalg.cholesky(covariance).T
    return rows_of_it


def mixed(seed: int, rows: int, children: int, parents: int) -> tuple[Tensor, Tensor]:
    """Correlated parents, and children that depend on them with scales far apart."""
    y = draw(seed, rows, parents) @ draw(seed + 1, parents, parents)
    x = y @ draw(seed + 2, parents, children) + 2 * draw(seed + 3, rows, children)
    return x * torch.logspace(-3, 3, children, dtype=torch.float64), y + 5


# ---------------------------------------------------------------- all pairs


@pytest.mark.parametrize("noise", [0.0, 1e-2])
@pytest.mark.parametrize(
    "child_groups, parent_groups",
    [
        (None, None),
        ([0, 1, 0, 2, 1], [1, 0, 0, 2, 1, 1, 3]),
        ([0, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2, 2]),
    ],
)
def test_all_pairs_are_what_each_pair_gives(
    noise: float, child_groups: list[int] | None, parent_groups: list[int] | None
) -> None:
    x, y = mixed(0, 90, 5, 7)
    cg, pg = child_groups or list(range(5)), parent_groups or list(range(7))
    found = gaussian(
        x,
        y,
        child_groups=torch.tensor(child_groups) if child_groups else None,
        parent_groups=torch.tensor(parent_groups) if parent_groups else None,
        noise=noise,
        correct=False,
    )
    assert found.shape == (max(cg) + 1, max(pg) + 1) and found.dtype == torch.float64
    for q in range(max(cg) + 1):
        for p in range(max(pg) + 1):
            child = x[:, [c for c, g in enumerate(cg) if g == q]]
            expected = gaussian_pair(child, y, [c for c, g in enumerate(pg) if g == p], noise)
            assert abs(float(found[q, p] - expected)) < 1e-10


def test_two_variables_in_closed_form() -> None:
    rho = 0.6
    rows = with_covariance(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64), 50)
    found = gaussian(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    assert float(found) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-12)


def test_three_variables_in_closed_form() -> None:
    xy, xz, yz = 0.5, 0.3, -0.4
    covariance = torch.tensor([[1, xy, xz], [xy, 1, yz], [xz, yz, 1]], dtype=torch.float64)
    rows = with_covariance(covariance, 50)
    found = gaussian(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    for parent, (own, other) in enumerate([(xy, xz), (xz, xy)]):
        partial = (own - other * yz) / math.sqrt((1 - other**2) * (1 - yz**2))
        expected = -0.5 * math.log(1 - partial**2)
        assert float(found[0, parent]) == pytest.approx(expected, abs=1e-12)


def test_a_chain_has_no_link_but_its_own() -> None:
    # y0 -> y1 -> x: given y1, y0 says nothing, though alone it says much
    covariance = torch.tensor([[1, 0.64, 0.8], [0.64, 1, 0.8], [0.8, 0.8, 1]], dtype=torch.float64)
    rows = with_covariance(covariance, 60)
    found = gaussian(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    assert abs(float(found[0, 0])) < 1e-12
    assert float(found[0, 1]) > 0.2
    assert float(gaussian(rows[:, :1], rows[:, 1:2], noise=0, correct=False)) > 0.2


@pytest.mark.parametrize("rows", [16, 40])
def test_the_correction_leaves_no_bias(rows: int) -> None:
    mix = draw(11, 8, 8)
    covariance = mix @ mix.T + torch.eye(8, dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    child_groups, parent_groups = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1, 1, 0])
    truth = torch.tensor(
        [
            [
                conditional_information(covariance, x, y, z)
                for y, z in (([3, 7], [4, 5, 6]), ([4, 5, 6], [3, 7]))
            ]
            for x in ([0, 1], [2])
        ]
    )
    corrected: list[Tensor] = []
    plain: list[Tensor] = []
    for seed in range(400):
        data = draw(1000 + seed, rows, 8) @ factor.T
        for correct, into in ((True, corrected), (False, plain)):
            into.append(
                gaussian(
                    data[:, :3],
                    data[:, 3:],
                    child_groups=child_groups,
                    parent_groups=parent_groups,
                    noise=0,
                    correct=correct,
                )
            )
    error = torch.stack(corrected) - truth
    allowed = 4 * error.std(0) / math.sqrt(len(error))
    assert bool((error.mean(0).abs() < allowed).all())
    assert bool(((torch.stack(plain) - truth).mean(0) > allowed).all())  # and there was a bias to see


def test_a_determined_child_is_worth_its_brain_surgeons_saliency() -> None:
    y = draw(3, 300, 6) @ draw(4, 6, 6)
    weight = draw(5, 6, 4)
    noise = 1e-2
    found = gaussian(y @ weight, y, noise=noise, correct=False)
    covariance = torch.cov(y.T, correction=0)
    precision = torch.linalg.inv(covariance)
    variance = ((covariance @ weight) * weight).sum(0)
    expected = 0.5 * (1 + weight.square() / (precision.diagonal()[:, None] * noise * variance)).log()
    assert bool(torch.isfinite(found).all())
    assert float((found - expected.T).abs().max()) < 1e-9


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(24)), st.integers(0, 100))
def test_the_order_of_rows_does_not_matter(order: list[int], seed: int) -> None:
    x, y = mixed(seed, 24, 3, 4)
    assert torch.allclose(gaussian(x[order], y[order]), gaussian(x, y), rtol=0, atol=1e-10)


scales = st.floats(1e-3, 1e3).flatmap(lambda s: st.sampled_from([s, -s]))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(scales, min_size=7, max_size=7),
    st.lists(st.floats(-100, 100), min_size=7, max_size=7),
    st.sampled_from([0.0, 1e-2]),
)
def test_units_and_offsets_do_not_matter(scale: list[float], offset: list[float], ridge: float) -> None:
    x, y = draw(21, 30, 3), draw(22, 30, 4)
    y = y + 0.5 * x[:, :1]
    s, o = torch.tensor(scale, dtype=torch.float64), torch.tensor(offset, dtype=torch.float64)
    moved = gaussian(x * s[:3] + o[:3], y * s[3:] + o[3:], ridge=ridge)
    assert torch.allclose(moved, gaussian(x, y, ridge=ridge), rtol=0, atol=1e-7)


def test_constant_columns_say_nothing_and_cost_nothing() -> None:
    x, y = mixed(7, 60, 3, 4)
    plain = gaussian(x, y)
    x = torch.cat([x, torch.full((60, 1), 0.1, dtype=torch.float64)], 1)
    y = torch.cat([torch.full((60, 1), -3.7, dtype=torch.float64), y], 1)
    found = gaussian(x, y)
    assert torch.allclose(found[:3, 1:], plain, rtol=0, atol=1e-12)
    assert not found[3].any() and not found[:, 0].any()


def test_copies_of_a_parent_need_a_ridge_and_then_both_look_dispensable() -> None:
    y = draw(8, 80, 3)
    x = y.sum(1, keepdim=True) + draw(9, 80, 2)
    twice = torch.cat([y, y[:, :1]], 1)
    with pytest.raises(MintError, match=r"4 parents over 80 rows \(ridge 0\) is singular"):
        gaussian(x, twice)
    alone, shared = gaussian(x, y, correct=False), gaussian(x, twice, correct=False, ridge=1e-6)
    assert bool((alone[:, 0] > 0.05).all())
    assert bool((shared[:, [0, 3]].abs() < 1e-4).all())
    assert torch.allclose(shared[:, 1:3], alone[:, 1:3], atol=1e-3)


def test_too_few_rows_are_an_error_or_a_finite_value() -> None:
    x, y = draw(9, 10, 2), draw(10, 10, 12)
    with pytest.raises(MintError, match=r"10 rows are too few for 12 parent columns.* needs 14"):
        gaussian(x, y)
    with pytest.raises(MintError, match=r"12 parents over 10 rows .* is singular"):
        gaussian(x, y, correct=False)
    assert bool(torch.isfinite(gaussian(x, y, correct=False, ridge=1e-3)).all())
    gaussian(draw(9, 14, 2), draw(10, 14, 12))  # the number the error asks for is enough


def test_without_noise_a_determined_child_is_an_error() -> None:
    y = draw(12, 40, 3)
    with pytest.raises(MintError, match="determined by its parents"):
        gaussian(y.sum(1, keepdim=True), y, noise=0)


# ---------------------------------------------------------------- second moments, elimination


def problem(seed: int, owner: list[int], children: int) -> tuple[Tensor, Tensor, Tensor]:
    d = len(owner)
    mix = draw(seed, d, d)
    covariance = mix @ mix.T / d + 0.3 * torch.eye(d, dtype=torch.float64)
    return covariance, draw(seed + 1, d, children), torch.tensor(owner)


def set_up(
    problems: list[tuple[Tensor, Tensor, Tensor]], units: int, noise: float = 1e-2
) -> list[Regression]:
    return [regression(s, w, owner, units, noise=noise, ridge=0.0) for s, w, owner in problems]


# units of one, two and three columns, scattered; -1 stays
SCATTERED = [3, 0, 1, -1, 1, 2, 3, 0, 3, -1, 4]


def test_scores_from_moments_are_those_from_samples() -> None:
    y = draw(30, 200, 7) @ draw(31, 7, 7)
    weight, groups = draw(32, 7, 3), torch.tensor([0, 1, 1, 2, 3, 2, 2])
    found = gaussian_from_moments(torch.cov(y.T, correction=0), weight, groups, 4, noise=1e-2, ridge=0.0)
    expected = gaussian(y @ weight, y, parent_groups=groups, noise=1e-2, correct=False)
    assert found.shape == (4,)
    assert torch.allclose(found, expected.sum(0), rtol=0, atol=1e-9)


def test_first_removal_is_the_cheapest_of_all() -> None:
    p = problem(40, SCATTERED, 4)
    order, losses = elimination([p], 5, 1e-2)
    scores = gaussian_from_moments(*p, 5, noise=1e-2, ridge=0.0)
    assert int(scores.argmin()) == order[0]
    assert float(scores.min()) == pytest.approx(losses[0], abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_every_removal_is_the_cheapest_after_a_fresh_refit(seed: int) -> None:
    problems = [problem(50 + 10 * seed, SCATTERED, 4)]
    order, losses = eliminate(set_up(problems, 5), 5)
    expected_order, expected_losses = elimination(problems, 5, 1e-2)
    assert order.tolist() == expected_order
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(expected_losses, abs=1e-9)


def test_two_problems_lose_the_smallest_sum() -> None:
    problems = [problem(98, [0, 1, 2, 3, 4, 5], 3), problem(298, [5, 2, 2, 1, 0, 4, 3], 2)]
    order, losses = eliminate(set_up(problems, 6), 6)
    expected_order, expected_losses = elimination(problems, 6, 1e-2)
    assert order.tolist() == expected_order == [5, 3, 1, 0, 2, 4]
    assert losses.tolist() == pytest.approx(expected_losses, abs=1e-9)
    # neither would have begun with 5 by itself
    assert [elimination([p], 6, 1e-2)[0][0] for p in problems] == [4, 3]


def test_weights_are_refitted_on_what_is_left() -> None:
    covariance, weight, owner = problem(60, SCATTERED, 4)
    [one] = set_up([(covariance, weight, owner)], 5)
    snapshots: dict[int, tuple[Tensor, Tensor]] = {}
    order, _ = eliminate([one], 5, step=lambda k: snapshots.update({k: (one.weight.clone(), one.noise)}))
    assert list(snapshots) == [1, 2, 3, 4, 5]
    variance = ((covariance @ weight) * weight).sum(0)
    for k, (found, noise) in snapshots.items():
        kept = [c for c in range(len(owner)) if int(owner[c]) not in order[:k].tolist()]
        expected = least_squares(covariance, weight, kept)
        assert float((found - expected).abs().max()) < 1e-8
        error = weight - expected
        lost = ((covariance @ error) * error).sum(0)
        assert torch.allclose(noise, 1e-2 * variance + lost, rtol=1e-9)


def test_of_two_copies_one_is_free_and_the_other_dear() -> None:
    y = draw(70, 500, 4)
    y = torch.cat([y, y[:, 1:2]], 1)  # column 4 is a copy of column 1
    weight = torch.tensor([[1.0], [0.8], [0.9], [1.1], [0.7]], dtype=torch.float64)
    moments = (torch.cov(y.T, correction=0), weight, torch.arange(5))
    scores = gaussian_from_moments(*moments, 5, noise=1e-2, ridge=1e-6)
    assert bool((scores[[1, 4]] < 1e-3).all()) and bool((scores[[0, 2, 3]] > 1).all())
    order, losses = eliminate([regression(*moments, 5, noise=1e-2, ridge=1e-6)], 5)
    assert int(order[0]) in (1, 4)
    assert float(losses[0]) < 1e-3
    assert int(order[-1]) in (1, 4)  # with the weight of both, the other one is the dearest of all
    assert bool((losses[1:] > 0.1).all())
    survivor = order[-1]
    fresh = regression(*moments, 5, noise=1e-2, ridge=1e-6)
    fresh.remove(order[:1])
    assert float(information([fresh], survivor[None])) > 1


def test_ties_go_to_the_lower_number() -> None:
    covariance, weight = torch.eye(6, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64)
    order, losses = eliminate(set_up([(covariance, weight, torch.tensor([4, 2, 0, 1, 5, 3]))], 6), 6)
    assert order.tolist() == [0, 1, 2, 3, 4, 5]
    assert bool((losses.diff() < 0).all())  # a share of ever larger noise


def test_units_without_columns_go_first_and_are_free() -> None:
    order, losses = eliminate(set_up([problem(80, [1, 3, 1], 2)], 4), 4)
    assert order[:2].tolist() == [0, 2]
    assert losses[:2].tolist() == [0, 0] and bool((losses[2:] > 0).all())


def test_removal_in_blocks_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    width = 40
    mix = 0.2 * draw(100, width, width) / math.sqrt(width)
    covariance = torch.eye(width, dtype=torch.float64) + mix + mix.T
    # the cheap ones scattered, each some 30 % dearer than the one before
    size = torch.logspace(-2, 2, width, dtype=torch.float64)[draw(101, width).argsort()]
    problems = [(covariance, size[:, None] * draw(102, width, 3).sign(), torch.arange(width))]
    exact = eliminate(set_up(problems, width), width)
    monkeypatch.setattr(module, "EXACT_COLUMNS", 20)
    steps: list[int] = []
    order, losses = eliminate(set_up(problems, width), width, step=steps.append)
    assert steps == list(range(4, width + 1, 4))  # four at a time
    assert order.tolist() == exact[0].tolist()
    assert torch.allclose(losses, exact[1], rtol=1e-8, atol=0)


def test_removal_in_blocks_does_not_take_both_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    y = draw(120, 500, 39)
    y = torch.cat([y, y[:, :1]], 1)
    one = regression(
        torch.cov(y.T, correction=0),
        1 + 0.1 * draw(121, 40, 2),
        torch.arange(40),
        40,
        noise=1e-2,
        ridge=1e-6,
    )
    monkeypatch.setattr(module, "EXACT_COLUMNS", 10)
    order, losses = eliminate([one], 40)
    assert {int(order[0]), int(order[-1])} == {0, 39}
    assert float(losses[0]) < 1e-3 and bool((losses[1:] > 0.01).all())


def test_bad_moments_are_refused() -> None:
    covariance, weight, owner = problem(110, [0, 1, 2], 2)
    with pytest.raises(MintError, match="NaN or infinite"):
        regression(covariance * float("nan"), weight, owner, 3, noise=1e-2, ridge=0)
    with pytest.raises(MintError, match="NaN or infinite"):
        regression(covariance, weight * float("inf"), owner, 3, noise=1e-2, ridge=0)
    with pytest.raises(MintError, match=r"3 parents .ridge 0. is singular"):
        regression(torch.ones(3, 3), weight.float(), owner, 3, noise=1e-2, ridge=0)
    with pytest.raises(MintError, match="noise must be positive, not 0"):
        regression(covariance, weight, owner, 3, noise=0, ridge=0)
