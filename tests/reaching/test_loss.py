"""A bound on the loss: the most that goes within it, or a failed check beside another goal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toydata
from networks import Chain
from torch import nn

import mint_compress
from mint_compress.errors import CheckFailed, MintError
from mint_compress.reaching.loss import check_drop, drop
from mint_compress.reporting.records import BeforeAfter, Metric
from mint_compress.training.finetuning import finetune_

PLAIN: dict[str, Any] = {"epochs": 0, "heal_epochs": 0, "round_to": 1, "upper_limit": 1.0}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = Chain(24, 24)
    finetune_(model, toydata.arrays().train, epochs=30, lr=0.1, batch_size=32)
    return model.eval()


def test_the_most_goes_that_keeps_the_bound(trained: nn.Module) -> None:
    small, report = mint_compress.compress(trained, toydata.arrays(), max_drop=5, **PLAIN)
    before, after = report.validation.original, report.validation.compressed
    assert before is not None
    assert after is not None
    assert 100 * (before - after) <= 5
    kept = [t for t in report.trials if t.quality is not None and 100 * (before - t.quality) <= 5]
    assert report.ratio is not None
    assert report.ratio.removed == max(trial.removed for trial in kept)
    assert report.ratio.asked is None
    lost = [trial for trial in report.trials if trial not in kept]
    assert all(trial.removed > report.ratio.removed for trial in lost)
    assert report.parameters is not None
    assert sum(p.numel() for p in small.parameters()) == report.parameters.after


def test_the_same_seed_walks_the_same_curve(trained: nn.Module) -> None:
    walked = [
        mint_compress.compress(trained, toydata.arrays(), max_drop=2, **PLAIN)[1].trials for _ in range(2)
    ]
    assert walked[0] == walked[1]


def test_beside_a_ratio_it_is_a_check(trained: nn.Module) -> None:
    with pytest.raises(
        CheckFailed, match=r"On the validation split accuracy went from .* more than --max-drop 0"
    ):
        mint_compress.compress(trained, toydata.arrays(), ratio=0.95, max_drop=0, compensate=False, **PLAIN)
    _, report = mint_compress.compress(trained, toydata.arrays(), ratio=0.1, max_drop=100, **PLAIN)
    assert report.trials == ()


def test_it_needs_data(trained: nn.Module) -> None:
    with pytest.raises(MintError, match="max-drop is measured on validation data"):
        mint_compress.compress(trained, max_drop=1, input_shape=toydata.SHAPE)


def test_a_drop_is_in_points_or_in_the_unit_and_has_a_direction() -> None:
    assert drop(Metric("accuracy", "%"), 0.93, 0.91) == pytest.approx(2)
    assert drop(Metric("error", "mm", higher_is_better=False), 1.5, 1.75) == pytest.approx(0.25)
    check_drop(Metric("accuracy", "%"), BeforeAfter(0.93, 0.92), 1.01)
    with pytest.raises(CheckFailed, match=r"went from 1\.500 mm to 1\.750 mm, more than --max-drop 0\.2"):
        check_drop(Metric("error", "mm", higher_is_better=False), BeforeAfter(1.5, 1.75), 0.2)
    with pytest.raises(CheckFailed):
        check_drop(Metric("R2"), BeforeAfter(0.9, float("nan")), 1)
