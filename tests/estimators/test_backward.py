"""Backward elimination, on samples and on second moments, against brute force."""

import math

import pytest
import torch
from reference import elimination, least_squares, residual_covariance
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import elimination as module
from mint_compress.estimators.backward import backward_elimination
from mint_compress.estimators.elimination import eliminate
from mint_compress.estimators.gaussian import gaussian
from mint_compress.estimators.noise_limit import eliminate_in_the_limit
from mint_compress.estimators.regression import Regression, information, regression


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- samples


def noisy(seed: int, parents: int = 7, rows: int = 120) -> tuple[Tensor, Tensor]:
    """Three children with noise of their own, in units and with offsets of their own."""
    y = draw(seed, rows, parents) @ draw(seed + 1, parents, parents) + 5
    x = y @ draw(seed + 2, parents, 3) + 2 * draw(seed + 3, rows, 3)
    return x * torch.tensor([1.0, 100, 0.01]) - 3, y


def unexplained(x: Tensor, y: Tensor, left: list[int]) -> Tensor:
    """Variance of each child that the parents ``left`` do not explain, plus noise of 1e-2 of it."""
    variance = x.var(0, correction=0)
    noise = 1e-2 * variance.clamp_min(1e-3 * variance.mean())
    return residual_covariance(x, y[:, left]).diagonal() + noise


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 5, 6], [1, 0, 0, 2, 1, 3, 1]])
def test_every_step_is_the_cheapest_after_a_fresh_fit(labels: list[int]) -> None:
    x, y = noisy(0)
    found = backward_elimination(x, y, parent_groups=torch.tensor(labels), noise=1e-2, ridge=0)
    gone: list[int] = []
    for group, loss in zip(found.order.tolist(), found.loss.tolist(), strict=True):

        def price(group: int) -> float:
            after = [c for c, g in enumerate(labels) if g not in (*gone, group)]
            before = [c for c, g in enumerate(labels) if g not in gone]
            return float(0.5 * (unexplained(x, y, after) / unexplained(x, y, before)).log().mean())

        prices = {g: price(g) for g in set(labels) - set(gone)}
        assert group == min(prices, key=prices.__getitem__)
        assert loss == pytest.approx(prices[group], abs=1e-9)
        gone.append(group)
    assert sorted(gone) == sorted(set(labels))


def test_all_losses_together_are_what_all_parents_say() -> None:
    x, y = noisy(10, parents=20)
    expected = 0.5 * (unexplained(x, y, []) / unexplained(x, y, list(range(20)))).log().mean()
    found = backward_elimination(x, y, noise=1e-2, ridge=0)
    assert float(found.loss.sum()) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("labels", [None, [1, 0, 0, 2, 1, 3, 1]])
def test_weights_are_least_squares_on_what_is_left(labels: list[int] | None) -> None:
    x, y = noisy(20)
    y[:, 3] = 1.5  # constant: its column never counts
    groups = torch.tensor(labels) if labels else None
    found = backward_elimination(x, y, parent_groups=groups, ridge=0)
    for removed in range(len(found.order) + 1):
        gone = found.order[:removed].tolist()
        left = [c for c, g in enumerate(labels or range(7)) if g not in gone and c != 3]
        weight, intercept = found.weights(removed)
        away = [c for c in range(7) if c not in left]
        assert weight.shape == (7, 3) and not weight[away].any()
        design = torch.cat([torch.ones(len(y), 1, dtype=y.dtype), y[:, left]], 1)
        expected = torch.linalg.lstsq(design, x).solution
        assert torch.allclose(weight[left], expected[1:], rtol=1e-8, atol=1e-10)
        assert torch.allclose(intercept, expected[0], rtol=1e-8, atol=1e-8)
    with pytest.raises(MintError, match=f"removed must be from 0 to {len(found.order)}, not 9"):
        found.weights(9)


def test_a_determined_child_costs_its_brain_surgeons_saliency() -> None:
    y = draw(30, 300, 6) @ draw(31, 6, 6)
    weight = draw(32, 6, 4)
    found = backward_elimination(y @ weight, y, noise=1e-2, ridge=0)
    covariance = torch.cov(y.T, correction=0)
    own = torch.linalg.inv(covariance).diagonal()[:, None]
    variance = ((covariance @ weight) * weight).sum(0)
    saliency = 0.5 * (1 + weight.square() / (own * 1e-2 * variance)).log().mean(1)
    assert int(found.order[0]) == int(saliency.argmin())
    assert float(found.loss[0]) == pytest.approx(float(saliency.min()), abs=1e-9)
    assert bool(torch.isfinite(found.loss).all())
    assert torch.allclose(found.weights(0)[0], weight, atol=1e-8)


def test_of_two_copies_in_samples_one_is_free_and_the_other_dear() -> None:
    y = draw(40, 500, 4)
    x = y @ torch.tensor([[1.0], [1.6], [0.9], [1.1]]).double() + 0.1 * draw(41, 500, 1)
    found = backward_elimination(x, torch.cat([y, y[:, 1:2]], 1), noise=1e-2, ridge=1e-6)
    assert {int(found.order[0]), int(found.order[-1])} == {1, 4}
    assert float(found.loss[0]) < 1e-3 and bool((found.loss[1:] > 0.1).all())
    weight, _ = found.weights(1)  # the copy that is left takes over
    assert float(weight[found.order[-1]]) == pytest.approx(1.6, abs=0.02)


def test_some_may_stay_and_progress_is_told() -> None:
    x, y = noisy(50)
    whole, calls = backward_elimination(x, y), []
    part = backward_elimination(x, y, keep=3, progress=lambda *call: calls.append(call))
    assert part.order.tolist() == whole.order[:4].tolist()
    assert torch.equal(part.loss, whole.loss[:4])
    assert calls == [("backward", k, 4) for k in (1, 2, 3, 4)]
    assert torch.equal(part.weights(4)[0], whole.weights(4)[0])
    none = backward_elimination(x, y, keep=7)
    assert len(none.order) == len(none.loss) == 0 and bool(none.weights(0)[0].any())
    with pytest.raises(MintError, match="keep must be from 0 to the number of parent groups, 7, not 8"):
        backward_elimination(x, y, keep=8)


def test_dead_parents_go_first_and_are_free() -> None:
    x, y = noisy(60)
    y[:, [2, 5]] = torch.tensor([0.0, -7.3]).double()
    x[:, 1] = 4
    found = backward_elimination(x, y)
    assert found.order[:2].tolist() == [2, 5]
    assert found.loss[:2].tolist() == [0, 0] and bool((found.loss[2:] > 0).all())
    weight, intercept = found.weights(2)
    assert not weight[:, 1].any() and float(intercept[1]) == pytest.approx(4)


def test_fewer_rows_than_parents_need_the_ridge() -> None:
    x, y = draw(70, 30, 3), draw(71, 30, 40)
    assert bool(torch.isfinite(backward_elimination(x, y).loss).all())
    with pytest.raises(MintError, match=r"40 parents over 30 rows \(ridge 0\) is singular"):
        backward_elimination(x, y, ridge=0)


def test_float32_samples_lose_the_same() -> None:
    x, y = (part.float() for part in noisy(80, parents=100, rows=800))
    found = backward_elimination(x, y, noise=1e-2)
    exact = backward_elimination(x.double(), y.double(), noise=1e-2)
    assert found.order[:50].tolist() == exact.order[:50].tolist()
    assert torch.allclose(found.loss, exact.loss, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- second moments


def problem(seed: int, owner: list[int], children: int) -> tuple[Tensor, Tensor, Tensor]:
    d = len(owner)
    mix = draw(seed, d, d)
    covariance = mix @ mix.T / d + 0.3 * torch.eye(d, dtype=torch.float64)
    return covariance, draw(seed + 1, d, children), torch.tensor(owner)


def set_up(
    problems: list[tuple[Tensor, Tensor, Tensor]], units: int, noise: float = 1e-2
) -> list[Regression]:
    return [regression(s, w, owner, units, noise=noise, ridge=0.0) for s, w, owner in problems]


def one_by_one(covariance: Tensor, weight: Tensor, owner: Tensor, units: int, *, ridge: float) -> Tensor:
    """Every unit's information, all others being given."""
    return information(
        [regression(covariance, weight, owner, units, noise=1e-2, ridge=ridge)], torch.arange(units)
    )


# units of one, two and three columns, scattered; -1 stays
SCATTERED = [3, 0, 1, -1, 1, 2, 3, 0, 3, -1, 4]


def test_scores_from_moments_are_those_from_samples() -> None:
    y = draw(30, 200, 7) @ draw(31, 7, 7)
    weight, groups = draw(32, 7, 3), torch.tensor([0, 1, 1, 2, 3, 2, 2])
    found = one_by_one(torch.cov(y.T, correction=0), weight, groups, 4, ridge=0.0)
    expected = gaussian(y @ weight, y, parent_groups=groups, noise=1e-2, ridge=0)
    assert found.shape == (4,)
    assert torch.allclose(found, expected.sum(0), rtol=0, atol=1e-9)


def test_first_removal_is_the_cheapest_of_all() -> None:
    p = problem(40, SCATTERED, 4)
    order, losses = elimination([p], 5, 1e-2)
    scores = one_by_one(*p, 5, ridge=0.0)
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
    scores = one_by_one(*moments, 5, ridge=1e-6)
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
    monkeypatch.setattr(module, "NARROW", 20)
    steps: list[int] = []
    order, losses = eliminate(set_up(problems, width), width, step=steps.append)
    assert steps == list(range(4, width + 1, 4))  # four at a time
    assert order.tolist() == exact[0].tolist()
    assert torch.allclose(losses, exact[1], rtol=1e-2, atol=0)  # near the limit of much noise


@pytest.mark.parametrize("noise", [1e-2, 10.0])
def test_many_units_go_in_the_same_order_with_fewer_updates(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a stream of 200 units; the last layer reads the last 150 of them
    problems = [problem(130 + i, list(range(200)), 3) for i in range(3)]
    problems.append(problem(140, list(range(50, 200)), 4))
    steps: list[int] = []
    order, losses = eliminate(set_up(problems, 200, noise), 200, step=steps.append)
    assert len(steps) == 67
    monkeypatch.setattr(module, "BATCHES", 1000)
    exact, lost = eliminate(set_up(problems, 200, noise), 200)
    for left in range(10, 200, 10):
        assert len(set(order[:left].tolist()) - set(exact[:left].tolist())) <= 1
    assert torch.allclose(losses.sort().values, lost.sort().values, rtol=0.02, atol=0)


def test_in_much_noise_children_need_not_be_looked_at_again() -> None:
    problems = [problem(150, list(range(40)), 30), problem(151, list(range(7, 40)), 9)]
    stream = set_up(problems, 40, noise=1e3)
    prices = information(stream, torch.arange(40))
    found = eliminate_in_the_limit(stream, prices, 12)
    assert found is not None
    order, losses = eliminate(stream, 40, keep=28)
    assert found[0].tolist() == order.tolist()
    torch.testing.assert_close(found[1], losses, rtol=1e-3, atol=0)
    # where a price is far from that of the limit, nothing is said
    little = set_up(problems, 40)
    assert eliminate_in_the_limit(little, information(little, torch.arange(40)), 12) is None
    blocks = set_up([problem(151, [i // 2 for i in range(80)], 9)], 40, noise=1e3)
    assert eliminate_in_the_limit(blocks, information(blocks, torch.arange(40)), 12) is None


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
    monkeypatch.setattr(module, "NARROW", 10)
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


def test_removal_in_blocks_with_a_reader_that_has_none_of_the_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second problem reads the last unit alone, which is the dearest of all."""
    covariance, weight, _ = problem(90, list(range(60)), 4)
    wide = [(covariance, weight, torch.arange(60))]
    one = torch.ones(1, 1, dtype=torch.float64)
    narrow = [(one, 1e3 * one, torch.tensor([60]))]
    both = eliminate(set_up(wide + narrow, 61), 61)[0]
    assert int(both[-1]) == 60
    monkeypatch.setattr(module, "NARROW", 20)
    order, losses = eliminate(set_up(wide + narrow, 61), 61)
    assert sorted(order.tolist()) == list(range(61)) and int(order[-1]) == 60
    assert bool(losses.isfinite().all())


def test_units_that_a_problem_does_not_read_cost_nothing_there() -> None:
    """Many narrow units of one reader, and few wide ones of another: a stream and heads that go with it."""
    asked: list[int] = []

    class Counted(Regression):
        def nats(self, units: Tensor) -> Tensor:
            asked.append(len(units))
            return super().nats(units)

    generator = torch.Generator().manual_seed(0)
    narrow, wide = torch.arange(20), 20 + torch.arange(16) // 8
    problems = []
    for owner in (narrow, wide):
        rows = torch.randn(100, len(owner), generator=generator, dtype=torch.float64)
        weight = torch.randn(len(owner), 5, generator=generator, dtype=torch.float64)
        problems.append(regression(rows.T @ rows / 100, weight, owner, 22))
    apart = [p.nats(torch.arange(22)).sum(1) for p in problems]
    found = information([Counted(**vars(p)) for p in problems], torch.arange(22))
    assert asked == [20, 2]
    torch.testing.assert_close(found, apart[0] + apart[1])
