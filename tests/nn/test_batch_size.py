from __future__ import annotations

import pytest
import torch
from torch import nn

from mint_compress.nn import batch_size as module
from mint_compress.nn.batch_size import kept_alive, kept_alive_at, largest_output, samples_at_once
from mint_compress.nn.memory_format import fastest_layout


def test_the_largest_output_is_that_of_any_module_for_one_sample() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)).train()
    assert largest_output(model, torch.zeros(2, 3, 10, 10)) == 4 * 8 * 8 * 8
    assert largest_output(model.double(), torch.zeros(1, 3, 10, 10).double()) == 8 * 8 * 8 * 8
    assert model.training


def test_as_many_samples_as_keep_outputs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = nn.Linear(10, 100), torch.zeros(1, 10)
    for limit, at_once in ((400 * 7, 7), (400 * 8 - 1, 7), (400 * 1000, 64), (3, 1)):
        monkeypatch.setitem(module.LARGEST, "cpu", limit)
        assert samples_at_once(model, sample, 64) == at_once


class Views(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).view(len(x), -1)


def test_kernels_lie_as_before_once_it_is_over() -> None:
    x = torch.rand(5, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight.data = model[1].weight.data.to(memory_format=torch.channels_last)
    with fastest_layout([model], x) as layout:
        assert layout == torch.channels_last
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            model[0].weight.fill_(2.0)
    assert model[0].weight.is_contiguous() and bool((model[0].weight == 2).all())
    assert not model[1].weight.is_contiguous()
    with fastest_layout([Views(nn.Conv2d(3, 4, 3))], x) as layout:
        assert layout == torch.contiguous_format


def test_more_samples_may_wait_where_maps_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE", module.MAPS * 32000)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.AvgPool2d(5), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(16, 2)
    )
    sample = torch.zeros(1, 1, 10, 10)
    # 8 x 100 numbers come out of the first; 8 x 4 go into the second, of which all later maps are smaller
    assert kept_alive_at(model, sample, ["0", "2", "4"]) == [10, 250, 500]
    assert kept_alive(model, sample) == 10
    # in another order nobody knows where a sample is
    assert kept_alive_at(model, sample, ["2", "0"]) == [10, 10]
