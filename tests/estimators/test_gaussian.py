"""`gaussian` from samples is `gaussian` from second moments, and both are what the formula says."""

import pytest
import torch
from reference import residual_covariance
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.backward import backward_elimination
from mint_compress.estimators.elimination import eliminate
from mint_compress.estimators.gaussian import gaussian
from mint_compress.estimators.regression import NOISE, RIDGE, Regression, information, regression


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed: int, children: int = 4) -> tuple[Tensor, Tensor]:
    """Twelve correlated rectified parents of unequal size, one of them dead, and a linear map of them.

    The last child has a millionth of the others' variance, so that the floor of the noise counts.
    """
    parents = (draw(seed, 400, 12) @ draw(seed + 1, 12, 12)).relu() * torch.logspace(-1, 1, 12).double()
    parents[:, 5] = 0
    weight = draw(seed + 2, 12, children)
    weight[5] = 0  # samples cannot tell what a layer would make of a parent that is always the same
    weight[:, -1] *= 1e-3
    return parents, weight


GROUPS = [list(range(12)), [2, 0, 0, 1, 3, 3, 1, 4, 4, 4, 2, 5]]
IMPORTANCE = [None, torch.tensor([1.0, 0, 30, 2]).double()]


def from_moments(parents: Tensor, weight: Tensor, groups: list[int], importance: Tensor | None) -> Regression:
    """As the command sets a layer up, with its defaults."""
    covariance = torch.cov(parents.T, correction=0)
    units = torch.tensor(groups)
    return regression(
        covariance, weight, units, max(groups) + 1, importance=importance, scale=1 / weight.shape[1]
    )


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("groups", GROUPS)
def test_samples_and_moments_score_alike(groups: list[int], importance: Tensor | None) -> None:
    parents, weight = layer(0)
    expected = information([from_moments(parents, weight, groups, importance)], torch.arange(max(groups) + 1))
    found = gaussian(parents @ weight + 3, parents, parent_groups=torch.tensor(groups), importance=importance)
    assert float(expected.max()) > 1e-3
    assert torch.allclose(found.mean(0), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("groups", GROUPS)
def test_samples_and_moments_are_eliminated_alike(groups: list[int], importance: Tensor | None) -> None:
    parents, weight = layer(10)
    order, loss = eliminate([from_moments(parents, weight, groups, importance)], max(groups) + 1)
    found = backward_elimination(
        parents @ weight + 3, parents, parent_groups=torch.tensor(groups), importance=importance
    )
    assert found.order.tolist() == order.tolist()
    assert torch.allclose(found.loss, loss, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("groups", GROUPS)
def test_the_first_to_go_is_the_one_of_least_score(groups: list[int]) -> None:
    """Scores with all others given and prices of the elimination are one scale, the mean over children."""
    parents, weight = layer(20)
    children, labels = parents @ weight + draw(23, 400, 4), torch.tensor(groups)
    scores = gaussian(children, parents, parent_groups=labels).mean(0)
    found = backward_elimination(children, parents, parent_groups=labels)
    assert int(found.order[0]) == int(scores.argmin())
    assert float(found.loss[0]) == pytest.approx(float(scores.min()), rel=1e-12)


def test_it_is_the_variance_that_goes_beside_what_is_unknown() -> None:
    """Children with noise of their own; what all parents leave of them is unknown in any case."""
    parents, children = draw(30, 300, 5) @ draw(31, 5, 5), draw(32, 300, 3)
    children = children + parents @ draw(33, 5, 3) / 3
    found = gaussian(children, parents, noise=0.5, ridge=0)
    with_all = residual_covariance(children, parents).diagonal()
    observed = 0.5 * children.var(0, correction=0)
    for parent in range(5):
        others = [p for p in range(5) if p != parent]
        without = residual_covariance(children, parents[:, others]).diagonal()
        expected = 0.5 * ((without + observed) / (with_all + observed)).log()
        assert torch.allclose(found[:, parent], expected, rtol=0, atol=1e-12)


def test_the_defaults_in_formulas() -> None:
    parents, weight = draw(40, 200, 4) @ draw(41, 4, 4), draw(42, 4, 2)
    covariance = torch.cov(parents.T, correction=0)
    mean = covariance.diagonal().mean()
    precision = torch.linalg.inv(covariance + 1e-3 * mean * torch.eye(4, dtype=torch.float64))
    variance = (weight.T @ covariance @ weight).diagonal()
    expected = 0.5 * (1 + weight.square() / precision.diagonal()[:, None] / (10 * variance)).log()
    assert (NOISE, RIDGE) == (10, 1e-3)
    assert torch.allclose(gaussian(parents @ weight, parents), expected.T, rtol=0, atol=1e-12)


def test_importance_makes_noise_dear_where_outputs_depend() -> None:
    """Noise that costs the same in each child, and 10 times their variances, weighted, on average."""
    parents, weight = draw(50, 300, 3), draw(51, 3, 2)
    importance = torch.tensor([4.0, 1.0]).double()
    children = parents @ weight
    variance = children.var(0, correction=0)
    cost = 10 * (importance * variance).mean()
    shared = torch.stack([cost / 4, cost])
    precision = torch.linalg.inv(torch.cov(parents.T, correction=0)).diagonal()
    expected = 0.5 * (1 + weight.square() / precision[:, None] / shared).log()
    found = gaussian(children, parents, ridge=0, importance=importance)
    assert torch.allclose(found, expected.T, rtol=0, atol=1e-12)


def test_children_of_a_group_count_each_by_itself() -> None:
    parents, weight = layer(60)
    children = parents @ weight
    single = gaussian(children, parents)
    found = gaussian(children, parents, child_groups=torch.tensor([1, 0, 1, 3]))
    assert found.shape == (4, 12)
    expected = torch.stack([single[1], single[0] + single[2], 0 * single[0], single[3]])
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_copies_of_a_parent_need_a_ridge_and_then_both_look_dispensable() -> None:
    y = draw(70, 300, 3)
    x = y @ torch.tensor([[1.0], [2], [1]]).double()
    twice = torch.cat([y, y[:, 1:2]], 1)
    found = gaussian(x, twice)
    assert bool((found[0, [1, 3]] < 5e-3 * found[0, 0]).all())
    assert torch.allclose(found[0, [0, 2]], gaussian(x, y)[0, [0, 2]], rtol=1e-3)
    with pytest.raises(MintError, match=r"4 parents over 300 rows \(ridge 0\) is singular"):
        gaussian(x, twice, ridge=0)


def test_fewer_rows_than_parents_have_finite_scores_and_a_map_that_fits() -> None:
    x, y = draw(80, 30, 3), draw(81, 30, 40)
    assert bool(torch.isfinite(gaussian(x, y)).all())
    weight, intercept = backward_elimination(x, y, ridge=1e-9).weights(0)
    assert torch.allclose(y @ weight + intercept, x, atol=1e-6)


def test_float32_is_as_good_as_float64() -> None:
    parents, weight = layer(90)
    parents = parents.float()
    children = parents @ weight.float()
    found, exact = gaussian(children, parents), gaussian(children.double(), parents.double())
    assert found.dtype == torch.float64
    assert float((found - exact).abs().max()) < 1e-6


def test_a_size_in_common_and_offsets_do_not_matter() -> None:
    parents, weight = layer(100)
    children = parents @ weight
    found = gaussian(-1e5 * children + 7, 1e-4 * parents - 2)
    assert torch.allclose(found, gaussian(children, parents), rtol=1e-7, atol=1e-12)


def test_there_must_be_noise_and_progress_ends_at_the_total() -> None:
    parents, weight = layer(110)
    with pytest.raises(MintError, match="noise must be positive, not 0"):
        gaussian(parents @ weight, parents, noise=0)
    with pytest.raises(MintError, match="ridge must be a finite number, at least 0, not -1"):
        gaussian(parents @ weight, parents, ridge=-1)
    calls: list[tuple[str, int, int]] = []
    gaussian(parents @ weight, parents, progress=lambda *call: calls.append(call))
    assert calls == [("gaussian", 48, 48)]


def test_a_reader_of_which_nothing_is_left_takes_no_further_part() -> None:
    """One reads three of many units, which are worth least and so go first; many go at a time."""
    generator = torch.Generator().manual_seed(2)
    units, few = 300, 3
    made = torch.randn(units, 400, dtype=torch.float64, generator=generator)
    weight = torch.randn(units, 8, dtype=torch.float64, generator=generator)
    weight[:few] = 0
    wide = regression(made @ made.T / 400, weight, torch.arange(units), units)
    small = 1e-9 * torch.ones(few, 1, dtype=torch.float64)
    narrow = regression(torch.eye(few, dtype=torch.float64), small, torch.arange(few), units, scale=1e-12)
    order, losses = eliminate([wide, narrow], units)
    assert sorted(order.tolist()) == list(range(units)) and sorted(order[:few].tolist()) == [0, 1, 2]
    assert bool(losses.isfinite().all())
