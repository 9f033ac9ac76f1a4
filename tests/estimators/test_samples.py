"""Samples are standardised, and it is known what they were."""

import pytest
import torch

from mint_compress.estimators.samples import check_samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_give_the_samples_back(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(200, 6, generator=generator).double()
    given[:, 1] = 4.2
    given = given * torch.tensor([1, 1, 1e-30, 1e30, 3, 1e-3]) + torch.tensor([0, 0, 0, 0, 50, 0])
    given = given.to(dtype)
    samples = check_samples(given, given[:, :2], None, None, dtype=dtype)
    mean, deviation = samples.child_units
    assert samples.child_units.dtype == torch.float64
    assert deviation[1] == 0 and torch.equal(mean[1], given[0, 1].double())
    assert torch.allclose(mean, given.double().mean(0), rtol=1e-5, atol=1e-8)
    assert torch.allclose(deviation, given.double().std(0, correction=0), rtol=1e-5, atol=0)
    back = samples.children.double() * deviation + mean
    assert float(((back - given.double()) / deviation.masked_fill(deviation == 0, 1)).abs().max()) < 1e-4
    assert torch.allclose(samples.parent_units, samples.child_units[:, :2], rtol=1e-6, atol=0)
    assert [len(group) for group in samples.child_groups] == [1, 0, 1, 1, 1, 1]
