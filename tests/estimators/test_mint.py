"""The published method: step by step on few rows, its known values, and where its signal ends."""

import math

import pytest
import torch
from reference import crossing, kruskal, mint_regime
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators.conditioning import pools

# one parent alone, as others publish it, has no public way
from mint_compress.estimators.gmi import _against_one_parent, _padded, gmi
from mint_compress.estimators.mint import mint
from mint_compress.estimators.samples import check_samples


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published(x: Tensor, y: Tensor, z: Tensor, order: list[int], mix: list[int]) -> float:
    """One score, by the book: thirds of the rows, the nearest donor's parent, one tree, one count."""
    third = len(order) // 3
    real, null, donors = order[:third], order[third : 2 * third], order[2 * third :]
    points = [torch.cat([x[i], y[i], z[i]]) for i in real]
    for i in null:
        donor = min(donors, key=lambda j: float((z[i] - z[j]).norm()))
        points.append(torch.cat([x[i], y[donor], z[i]]))
    pooled = torch.stack([points[i] for i in mix])
    redrawn = torch.tensor([i >= third for i in mix])
    distances = (pooled[:, None] - pooled[None]).square().sum(-1)
    return 1 - crossing(kruskal(distances), redrawn) * (third + third) / (2 * third * third)


@pytest.mark.parametrize("others", [1, 3, 20])
def test_it_is_the_published_algorithm(others: int) -> None:
    y = draw(1, 66, 2 + others)
    x = y[:, :1] + y[:, 2:3] + 0.5 * draw(2, 66, 1)
    labels = (torch.arange(2 + others) > 1).long()
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(66, generator=generator).tolist()
    mix = torch.rand(66, generator=generator)[:44].argsort().tolist()
    unit_x, unit_y = ((v - v.mean(0)) / v.std(0, correction=0) for v in (x, y))
    found = mint(x, y, parent_groups=labels, seed=3)
    assert found.shape == (1, 2)
    expected = published(unit_x, unit_y[:, :2], unit_y[:, 2:], order, mix)
    assert float(found[0, 0]) == pytest.approx(expected, abs=1e-12)


def first_parents(x: Tensor, y: Tensor, own: int, *, width: int, conditioning: str, seed: int) -> Tensor:
    """What gmi (k-NN) or mint (raw) say of child groups of that width and the first parent group alone."""
    labels = torch.arange(x.shape[1]) // width, (torch.arange(y.shape[1]) >= own).long()
    samples = check_samples(x, y, *labels)
    raw = conditioning == "raw"
    generator = torch.Generator().manual_seed(seed)
    pool = pools(samples, conditioning, 0 if raw else 1e-2, 1e-3, generator)(samples.parent_groups[0])
    return _against_one_parent(pool, _padded(samples), 0 if raw else 10, lambda pairs: None)


def test_the_first_parents_alone_are_what_they_are_among_all() -> None:
    x, y = draw(7, 90, 4), draw(8, 90, 5)
    labels = torch.arange(4) // 2, torch.tensor([0, 0, 1, 1, 1])
    whole = {
        "raw": mint(x, y, child_groups=labels[0], parent_groups=labels[1], seed=9),
        "residual": gmi(x, y, child_groups=labels[0], parent_groups=labels[1], seed=9),
    }
    for conditioning, expected in whole.items():
        found = first_parents(x, y, 2, width=2, conditioning=conditioning, seed=9)
        assert found.equal(expected[:, 0])


def test_one_conditioning_dimension_is_conditioned_on() -> None:
    """Partial correlations of 0, .9 and .95 given z: the divergence itself is 0, .352 and .470."""
    estimates = []
    for seed in range(20):
        z, y, noise = draw(seed, 3, 2500, 1)
        links = [r * y + math.sqrt(1 - r**2) * noise for r in (0, 0.9, 0.95)]
        x, parents = torch.cat(links, 1) + z / 2, torch.cat([y + z / 2, z], 1)
        estimates.append(first_parents(x, parents, 1, width=1, conditioning="raw", seed=seed))
    chain, strong, stronger = torch.stack(estimates).mean(0).tolist()
    assert abs(chain) < 0.04
    assert strong == pytest.approx(0.352, abs=0.03)
    assert stronger == pytest.approx(0.470, abs=0.03)


@pytest.mark.parametrize("conditioning, low, high", [("residual", 0.9, 1), ("raw", 0.35, 0.65)])
def test_in_mints_regime_only_residuals_show_a_tenth_of_a_nat(
    conditioning: str, low: float, high: float
) -> None:
    """4 children, 4 parents and 508 others, 2,500 rows: area under the curve, 12 seeds a side."""
    found = []
    for seed in range(12):
        nothing, parents, _ = mint_regime(0, seed)
        linked, same, _ = mint_regime(0.1, seed)
        assert same.equal(parents)  # so that both can be scored in one go
        both = torch.cat([nothing, linked], 1)
        found.append(first_parents(both, parents, 4, width=4, conditioning=conditioning, seed=seed))
    null, link = torch.stack(found, 1)
    above, equal = (compare(link[:, None], null).double().mean() for compare in (torch.gt, torch.eq))
    assert low <= float(above + equal / 2) <= high


def test_it_is_gmi_in_raw_space_on_the_tree_without_noise() -> None:
    x, y = draw(4, 90, 2), draw(5, 90, 3)
    x[:, :1] += y[:, :1]
    calls: list[tuple[str, int, int]] = []
    found = mint(x, y, repeats=2, seed=6, progress=lambda *call: calls.append(call))
    assert found.equal(gmi(x, y, conditioning="raw", graph="mst", noise=0, repeats=2, seed=6))
    assert calls[-1] == ("mint", 12, 12) and {stage for stage, _, _ in calls} == {"mint"}


def test_a_rectified_neighbour_does_not_pass_for_a_link() -> None:
    """Half of the rows have the same value of the conditioning variable, and so the same nearest donors."""
    estimates = torch.stack(
        [
            mint(
                draw(seed, 300, 1), torch.cat([draw(100 + seed, 300, 1), draw(200 + seed, 300, 1).relu()], 1)
            )
            for seed in range(20)
        ]
    )
    assert float(estimates[:, 0, 0].mean()) < 0.1  # it is .03, and .38 with one donor for all of them


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(MintError, match="8 rows are too few for a spanning tree"):
        mint(draw(0, 8, 1), draw(1, 8, 2))
    assert mint(draw(0, 9, 1), draw(1, 9, 2)).shape == (1, 2)
