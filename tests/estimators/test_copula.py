"""Normal scores, and the parametric estimate on them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.copula import normal_scores
from mint_compress.estimators.parametric import parametric

INCREASING = [torch.exp, torch.atan, lambda v: v**3, lambda v: 100 * v - 7, torch.special.ndtr]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.sampled_from([torch.float32, torch.float64]))
def test_scores_are_quantiles_of_average_ranks(values: list[int], dtype: torch.dtype) -> None:
    columns = torch.tensor([values, values[::-1]], dtype=dtype).T
    found = normal_scores("values", columns)
    expected = norm.ppf(rankdata(columns.double().numpy(), axis=0) / (len(values) + 1))
    assert found.dtype == torch.float64
    assert float((found - torch.from_numpy(expected)).abs().max()) < 1e-12


def test_a_constant_column_stays_constant_and_says_nothing() -> None:
    x, y = draw(0, 50, 2), draw(1, 50, 3)
    y[:, 1] = 4.2
    assert not normal_scores("parents", y)[:, 1].any()
    assert not parametric(x, y, copula=True)[:, 1].any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(INCREASING) - 1), min_size=5, max_size=5), st.integers(0, 100))
def test_monotone_maps_do_not_matter(maps: list[int], seed: int) -> None:
    y = draw(seed, 40, 3)
    x = y[:, :2] + draw(seed + 1, 40, 2)
    columns = torch.cat([x, y], 1)
    mapped = torch.stack([INCREASING[m](columns[:, c]) for c, m in enumerate(maps)], 1)
    mapped[:, 0] *= -1  # nor does the direction
    found = parametric(mapped[:, :2], mapped[:, 2:], copula=True)
    assert torch.allclose(found, parametric(x, y, copula=True), rtol=0, atol=1e-9)


def test_heavy_tails_do_not_hide_a_link() -> None:
    rho = 0.8
    y = draw(5, 4000, 1)
    x = rho * y + math.sqrt(1 - rho**2) * draw(6, 4000, 1)
    truth = -0.5 * math.log(1 - rho**2)
    assert float(parametric(x, y, noise=0, copula=True)) == pytest.approx(truth, abs=0.03)
    x, y = (3 * x).sinh(), (3 * y).sinh()
    assert float(parametric(x, y, noise=0)) < 0.7 * truth
    assert float(parametric(x, y, noise=0, copula=True)) == pytest.approx(truth, abs=0.03)


def test_bad_values_are_refused_before_they_are_ranked() -> None:
    good, bad = draw(7, 9, 2), draw(8, 9, 2)
    bad[3, 1] = float("nan")
    with pytest.raises(MintError, match="parents hold NaN or infinite values"):
        parametric(good, bad, copula=True)
    with pytest.raises(MintError, match=r"children must be \(rows, columns\), not \(9,\)"):
        parametric(good[:, 0], good, copula=True)
