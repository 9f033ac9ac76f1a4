"""The parametric estimate against closed forms and brute force."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import conditional_information, gaussian_pair, mint_regime
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import parametric as module
from mint_compress.estimators.parametric import parametric


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
    found = parametric(
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
    found = parametric(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    assert float(found) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-12)


def test_three_variables_in_closed_form() -> None:
    xy, xz, yz = 0.5, 0.3, -0.4
    covariance = torch.tensor([[1, xy, xz], [xy, 1, yz], [xz, yz, 1]], dtype=torch.float64)
    rows = with_covariance(covariance, 50)
    found = parametric(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    for parent, (own, other) in enumerate([(xy, xz), (xz, xy)]):
        partial = (own - other * yz) / math.sqrt((1 - other**2) * (1 - yz**2))
        expected = -0.5 * math.log(1 - partial**2)
        assert float(found[0, parent]) == pytest.approx(expected, abs=1e-12)


def test_a_chain_has_no_link_but_its_own() -> None:
    # y0 -> y1 -> x: given y1, y0 says nothing, though alone it says much
    covariance = torch.tensor([[1, 0.64, 0.8], [0.64, 1, 0.8], [0.8, 0.8, 1]], dtype=torch.float64)
    rows = with_covariance(covariance, 60)
    found = parametric(rows[:, :1], rows[:, 1:], noise=0, correct=False)
    assert abs(float(found[0, 0])) < 1e-12
    assert float(found[0, 1]) > 0.2
    assert float(parametric(rows[:, :1], rows[:, 1:2], noise=0, correct=False)) > 0.2


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
    for seed in range(400):
        data = draw(1000 + seed, rows, 8) @ factor.T
        x, y = data[:, :3], data[:, 3:]
        corrected.append(parametric(x, y, child_groups=child_groups, parent_groups=parent_groups, noise=0))
    plain = parametric(x, y, child_groups=child_groups, parent_groups=parent_groups, noise=0, correct=False)
    error = torch.stack(corrected) - truth
    allowed = 4 * error.std(0) / math.sqrt(len(error))
    assert bool((error.mean(0).abs() < allowed).all())
    # and there was a bias to see; it depends on the sizes only
    assert bool((error.mean(0) + plain - corrected[-1] > allowed).all())


def test_a_determined_child_is_worth_its_brain_surgeons_saliency() -> None:
    y = draw(3, 300, 6) @ draw(4, 6, 6)
    weight = draw(5, 6, 4)
    noise = 1e-2
    found = parametric(y @ weight, y, noise=noise, correct=False)
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
    assert torch.allclose(parametric(x[order], y[order]), parametric(x, y), rtol=0, atol=1e-10)


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
    moved = parametric(x * s[:3] + o[:3], y * s[3:] + o[3:], ridge=ridge)
    assert torch.allclose(moved, parametric(x, y, ridge=ridge), rtol=0, atol=1e-7)


def test_constant_columns_say_nothing_and_cost_nothing() -> None:
    x, y = mixed(7, 60, 3, 4)
    plain = parametric(x, y)
    x = torch.cat([x, torch.full((60, 1), 0.1, dtype=torch.float64)], 1)
    y = torch.cat([torch.full((60, 1), -3.7, dtype=torch.float64), y], 1)
    found = parametric(x, y)
    assert torch.allclose(found[:3, 1:], plain, rtol=0, atol=1e-12)
    assert not found[3].any() and not found[:, 0].any()


def test_copies_of_a_parent_need_a_ridge_and_then_both_look_dispensable() -> None:
    y = draw(8, 80, 3)
    x = y.sum(1, keepdim=True) + draw(9, 80, 2)
    twice = torch.cat([y, y[:, :1]], 1)
    with pytest.raises(MintError, match=r"4 parents over 80 rows \(ridge 0\) is singular"):
        parametric(x, twice)
    alone, shared = parametric(x, y, correct=False), parametric(x, twice, correct=False, ridge=1e-6)
    assert bool((alone[:, 0] > 0.05).all())
    assert bool((shared[:, [0, 3]].abs() < 1e-4).all())
    assert torch.allclose(shared[:, 1:3], alone[:, 1:3], atol=1e-3)


def test_too_few_rows_are_an_error_or_a_finite_value() -> None:
    x, y = draw(9, 10, 2), draw(10, 10, 12)
    with pytest.raises(MintError, match=r"10 rows are too few for 12 parent columns.* needs 14"):
        parametric(x, y)
    with pytest.raises(MintError, match=r"12 parents over 10 rows .* is singular"):
        parametric(x, y, correct=False)
    assert bool(torch.isfinite(parametric(x, y, correct=False, ridge=1e-3)).all())
    parametric(draw(9, 14, 2), draw(10, 14, 12))  # the number the error asks for is enough


def test_without_noise_a_determined_child_is_an_error() -> None:
    y = draw(12, 40, 3)
    with pytest.raises(MintError, match="determined by its parents"):
        parametric(y.sum(1, keepdim=True), y, noise=0)


def test_children_and_parents_of_one_group_each_share_their_whole_information() -> None:
    x, y = mixed(30, 60, 3, 5)
    whole = [torch.zeros(n, dtype=torch.long) for n in (3, 5)]
    found = parametric(x, y, child_groups=whole[0], parent_groups=whole[1], noise=0, correct=False)
    covariance = torch.cov(torch.cat([x, y], 1).T, correction=0)
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(
        conditional_information(covariance, [0, 1, 2], [3, 4, 5, 6, 7], []), abs=1e-10
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-2, 2))
def test_two_columns_say_the_same_about_each_other(seed: int, link: float) -> None:
    y = draw(seed, 30, 1)
    x = link * y + draw(seed + 1, 30, 1)
    assert float(parametric(x, y, noise=0)) == pytest.approx(float(parametric(y, x, noise=0)), abs=1e-10)


# ---------------------------------------------------------------- float32, extreme values


def layer(seed: int, left: float = 1.0) -> tuple[Tensor, Tensor]:
    """2500 float32 rows of 512 parents, of which the others leave about ``left``, and 64 children."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(2500, 16, generator=generator) @ torch.randn(16, 512, generator=generator) / 4
    y = (1 - left) ** 0.5 * common + left**0.5 * torch.randn(2500, 512, generator=generator)
    x = y @ torch.randn(512, 64, generator=generator) / 20 + torch.randn(2500, 64, generator=generator)
    return x.relu() + 3, 7 * y - 20


@pytest.mark.parametrize("left", [1.0, 1e-2, 1e-5])
def test_float32_is_as_good_as_float64(left: float) -> None:
    x, y = layer(1, left)
    for groups in (None, (torch.arange(64) // 4, torch.arange(512) // 4)):
        labels: dict[str, Any] = (
            {} if groups is None else {"child_groups": groups[0], "parent_groups": groups[1]}
        )
        found, exact = parametric(x, y, **labels), parametric(x.double(), y.double(), **labels)
        assert found.dtype == torch.float64
        assert float((found - exact).abs().max()) < 1e-5


def test_float32_at_full_size_is_what_each_pair_gives() -> None:
    x, y = layer(2, 0.5)
    found = parametric(x, y, parent_groups=torch.arange(512) // 4, correct=False)
    expected = gaussian_pair(x[:, :1].double(), y.double(), [40, 41, 42, 43], 1e-2)
    assert abs(float(found[0, 10] - expected)) < 1e-5


def test_precision_that_the_caller_gave_away_is_not_used_and_is_given_back() -> None:
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    x, y = layer(3)
    expected = parametric(x, y)
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
        assert torch.equal(parametric(x, y), expected)
        with pytest.raises(MintError):
            parametric(x, torch.cat([y, y[:, :1]], 1))
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


@pytest.mark.parametrize(
    "dtype, size",
    [(torch.float32, 1e-35), (torch.float32, 1e36), (torch.float64, 1e-305), (torch.float64, 1e306)],
)
def test_columns_of_any_size_count(dtype: torch.dtype, size: float) -> None:
    x, y = (part.to(dtype) for part in (draw(40, 200, 2), draw(41, 200, 3)))
    x = x + y[:, :2]
    scale = torch.tensor([1, size, 1], dtype=dtype)
    found = parametric(x * scale[:2], torch.cat([y * scale, torch.full_like(y[:, :1], size)], 1))
    assert torch.allclose(found[:, :3], parametric(x, y), rtol=0, atol=1e-5)
    assert not found[:, 3].any()


# ---------------------------------------------------------------- MINT's regime


@cache
def estimates(nats: float) -> Tensor:
    """20 seeds, 2500 rows: 4 children, their own 4 parents, 508 others."""
    found = []
    for seed in range(20):
        x, y, groups = mint_regime(nats, seed)
        labels: dict[str, Any] = {"child_groups": torch.zeros(4, dtype=torch.long), "parent_groups": groups}
        found.append(parametric(x, y, noise=0, **labels)[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("nats, spread", [(0.0, 0.0014), (0.1, 0.0087), (1.0, 0.024)])
def test_no_bias_at_full_size(nats: float, spread: float) -> None:
    found = estimates(nats)
    assert abs(float(found.mean()) - nats) < 4 * spread / math.sqrt(len(found))
    assert 0.5 * spread < float(found.std()) < 2 * spread


def test_a_tenth_of_a_nat_is_told_from_nothing() -> None:
    null, link = estimates(0.0), estimates(0.1)
    area = (link[:, None] > null).double().mean()
    assert float(area) >= 0.99


# ---------------------------------------------------------------- shrinkage, blocks


def shrunk_pair(data: Tensor, share: float, x: list[int], y: list[int], children: int) -> float:
    """Plug-in nats from the shrunk joint correlation matrix, with 1e-2 of noise on the children."""
    correlation = torch.corrcoef(data.T) * (1 - share)
    correlation.diagonal().add_(share)
    correlation.diagonal()[:children] += 1e-2
    z = [c for c in range(children, data.shape[1]) if c not in y]
    return conditional_information(correlation, x, y, z)


@pytest.mark.parametrize("shrinkage", [0.2, "oas"])
def test_shrinkage_is_that_of_the_joint_correlations(shrinkage: float | str) -> None:
    from sklearn.covariance import oas

    x, y = mixed(50, 40, 20, 80)  # half as many rows as parents
    data = torch.cat([(part - part.mean(0)) / part.std(0, correction=0) for part in (x, y)], 1)
    share = 0.2
    if shrinkage == "oas":
        squares, size, rows = float((data.T @ data / 40).square().sum()), 100, 40
        above = (1 - 2 / size) * squares + size**2  # eq. 23; the trace is the size
        share = above / ((rows + 1 - 2 / size) * (squares - size**2 / size))
        theirs = oas(data.numpy(), assume_centered=True)[1]  # leaves the two 2 / size out
        assert share == pytest.approx(theirs, rel=2 / size) and 0.05 < share < 0.95
    labels = torch.arange(20) // 2, torch.arange(80) // 4
    found = parametric(x, y, child_groups=labels[0], parent_groups=labels[1], shrinkage=shrinkage)
    single = parametric(x, y, shrinkage=shrinkage)
    for q, p in ((0, 0), (3, 7), (9, 19)):
        own = list(range(20 + 4 * p, 24 + 4 * p))
        expected = shrunk_pair(data, share, [2 * q, 2 * q + 1], own, 20)
        assert float(found[q, p]) == pytest.approx(expected, abs=1e-10)
        assert float(single[q, p]) == pytest.approx(shrunk_pair(data, share, [q], [20 + p], 20), abs=1e-10)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, float("nan"), "ledoit"])
def test_other_shrinkage_is_refused(shrinkage: float | str) -> None:
    with pytest.raises(MintError, match=r"shrinkage must be a number from 0 to 1, or 'oas', not"):
        parametric(draw(0, 9, 1), draw(1, 9, 1), shrinkage=shrinkage)


def test_blocks_of_pairs_change_nothing_and_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = mixed(60, 90, 5, 8)
    labels: dict[str, Any] = {
        "child_groups": torch.tensor([0, 0, 1, 2, 2]),
        "parent_groups": torch.tensor([0, 1, 1, 2, 2, 3, 5, 6]),
    }  # no group 4
    calls: list[tuple[str, int, int]] = []
    whole = parametric(x, y, **labels, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("parametric", 21, 21)
    monkeypatch.setattr(module, "at_once", lambda *_: 3)
    calls.clear()
    assert torch.allclose(parametric(x, y, **labels, progress=lambda *call: calls.append(call)), whole)
    # children by width: one group, two groups; parents by width: 3 + 1 of one column, 2 of two
    assert [done for _, done, _ in calls] == [3, 4, 6, 12, 14, 18, 21]
