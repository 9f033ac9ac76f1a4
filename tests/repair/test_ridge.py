"""Both forms of the ridge regression, against the textbook and against each other."""

import math

import torch
from torch import Tensor

from mint_compress.repair.ridge import HELD_OUT, RIDGES, RidgeFit, _Dual, _lowest, _Primal


def rows(count: int = 48, columns: int = 12, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    x = draw(2, count, columns) + 1.5
    truth = draw(2, columns, outputs)
    return x, x @ truth + 0.3 * draw(2, count, outputs) - 2.0, truth + 0.5 * draw(2, columns, outputs)


def test_both_forms_agree_and_are_the_textbook_solution() -> None:
    x, y, prior = rows()
    for intercept in (True, False):
        primal, dual = _Primal(12, intercept=intercept), _Dual(12, intercept=intercept)
        for fit in (primal, dual):
            fit.add(x, y, range(24))  # two rows an image
        one, other = primal.choose(prior), dual.choose(prior)
        assert one.ridge == other.ridge is not None
        assert torch.allclose(one.weight, other.weight, atol=1e-9)
        assert abs(one.before - other.before) < 1e-9 and abs(one.after - other.after) < 1e-9
        a, b = (x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)) if intercept else (x, y)
        for g in range(2):
            gram = a[g].T @ a[g] / 48
            scale = gram.diagonal().mean() * one.ridge
            right = a[g].T @ b[g] / 48 + scale * prior[g]
            expected = torch.linalg.solve(gram + scale * torch.eye(12, dtype=torch.float64), right)
            assert torch.allclose(one.weight[g], expected, atol=1e-9)
        if intercept:
            assert one.intercept is not None and other.intercept is not None
            expected = y.mean(1) - (x.mean(1, keepdim=True) @ one.weight)[:, 0]
            assert torch.allclose(one.intercept, expected, atol=1e-12)
            assert torch.allclose(one.intercept, other.intercept, atol=1e-9)
        else:
            assert one.intercept is other.intercept is None


def test_a_prior_that_cannot_be_beaten_stays() -> None:
    x, y, _ = rows()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    for form in (_Primal, _Dual):
        fit = form(12, intercept=True)
        fit.add(x, noise, range(24))  # nothing to learn, and four rows a column to learn it from
        prior = torch.zeros(2, 12, 3, dtype=torch.float64)
        chosen = fit.choose(prior)
        assert chosen.ridge in (None, 10.0)
        assert chosen.after <= chosen.before


def test_held_out_rows_are_those_of_every_fourth_image() -> None:
    x, y, prior = rows(count=16)
    fit = _Dual(12, intercept=False)
    fit.add(x[:, :6], y[:, :6], range(3))  # however few come at a time
    fit.add(x[:, 6:], y[:, 6:], range(3, 8))
    held = [i for image in range(8) if image % HELD_OUT == 3 for i in (2 * image, 2 * image + 1)]
    assert torch.equal(torch.cat([one for one, _ in fit._rows[1]], 1), x[:, held])
    assert prior.shape == (2, 12, 3)


def test_the_form_follows_from_rows_and_columns() -> None:
    forms = [RidgeFit.of(c, rows=r, intercept=True) for c, r in ((12, 48), (49, 48), (9000, 10**6))]
    assert [type(form) for form in forms] == [_Primal, _Dual, _Dual]


def test_columns_that_depend_on_each_other_need_no_special_care() -> None:
    generator = torch.Generator().manual_seed(2)
    few = torch.randn(1, 40, 3, generator=generator)
    x = few.repeat(1, 1, 500)  # 1,500 columns, 3 of them different, multiplied in float32
    fit = _Primal(1500, intercept=True)
    fit.add(x, few.sum(2, keepdim=True), range(20))
    chosen = fit.choose(torch.zeros(1, 1500, 1, dtype=torch.float64))
    assert chosen.before > 0.9
    assert chosen.after < 1e-3


def test_the_ridge_with_the_lowest_error_is_found_downhill() -> None:
    for best in range(len(RIDGES)):
        tried: list[float] = []

        def error(ridge: float, best: int = best, tried: list[float] = tried) -> float:
            tried.append(ridge)
            # too small a ridge may fail
            return math.inf if RIDGES.index(ridge) < best else RIDGES.index(ridge) + 0.5

        assert _lowest(error) == (RIDGES[best], best + 0.5)
        assert len(set(tried)) == len(tried)
    assert _lowest(lambda ridge: math.inf) == (RIDGES[-1], math.inf)
