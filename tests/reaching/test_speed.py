"""A speed that is asked for: reached by measurement, or refused with the fastest there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mint_compress
from mint_compress.errors import CheckFailed, MintError
from mint_compress.exporting.benchmarking import BenchmarkResult
from mint_compress.exporting.shipping import check_speed
from mint_compress.reporting.records import Latency
from mint_compress.settings import Budget

FAST: dict[str, Any] = {
    "input_shape": (16, 32, 32), "bench_seconds": 0.3, "calibration_images": 8, "provider": "cpu",
}  # fmt: skip


class Wide(nn.Module):
    """Two convolutions of 128 channels between thin ones: nearly all the time is theirs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a = nn.Conv2d(16, 128, 1), nn.Conv2d(128, 128, 3, padding=1)
        self.b, self.head = nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.stem(x).relu()).relu()).relu()
        return self.head(x).mean((2, 3))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_speedup_is_reached_with_as_little_as_it_takes(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    _, report = mint_compress.compress(Wide(), output=output, speedup=2, **FAST)
    # the machine may be busy: what was measured when the plan was chosen is what counts
    kept = [trial for trial in report.trials if (trial.speedup or 0) >= 2]
    assert kept
    assert report.ratio is not None
    assert report.ratio.removed == pytest.approx(min(trial.removed for trial in kept))
    assert report.ratio.asked is None
    assert report.macs_ratio is not None
    assert 1.5 < report.macs_ratio < 8
    assert "asked 2x" in str(report)
    assert len(json.loads((tmp_path / "small.json").read_text())["trials"]) == len(report.trials)


def test_what_cannot_be_reached_is_said_with_the_fastest_there_is(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"A speed-up of 1000x cannot be reached: the fastest takes .* ms of"):
        mint_compress.compress(Wide(), output=tmp_path / "small.onnx", speedup=1000, upper_limit=0.5, **FAST)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_a_latency_that_the_original_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"The original takes .* ms, which is not above --latency 10000"):
        mint_compress.compress(Wide(), output=tmp_path / "small.onnx", latency=10_000, **FAST)


@pytest.mark.slow
def test_a_share_at_the_price_of_latency(tmp_path: Path) -> None:
    _, report = mint_compress.compress(
        Wide(), output=tmp_path / "small.onnx", ratio=0.4, cost="latency", **FAST
    )
    assert report.ratio is not None
    assert report.ratio.removed >= 0.4
    assert report.trials == ()


@pytest.mark.slow
def test_a_plan_by_latency_can_be_looked_at_first(tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    mint_compress.compress(Wide(), output=output, speedup=1.2, dry_run=True, **FAST)
    assert {path.name for path in tmp_path.iterdir()} == {"small.plan.json", "cache"}


@pytest.mark.parametrize("options", [{"speedup": 2}, {"latency": 3}, {"ratio": 0.5, "cost": "latency"}])
def test_speed_is_measured_on_an_export(options: dict[str, Any]) -> None:
    with pytest.raises(MintError, match="Latency is measured on the export"):
        mint_compress.compress(Wide(), **FAST, **options)


@pytest.mark.parametrize(
    "options", [{"speedup": 1.0}, {"speedup": 0.5}, {"latency": 0.0}, {"max_drop": -1.0}]
)
def test_values_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(MintError, match="must be a"):
        Budget(**options)


def result(before: float, after: float) -> BenchmarkResult:
    times = [Latency(ms, ms, None, 10) for ms in (before, after)]
    return BenchmarkResult(times[0], times[1], before / after, "CPUExecutionProvider")


def test_a_network_that_is_not_faster_is_not_written() -> None:
    asked = Budget(speedup=2)
    with pytest.raises(CheckFailed, match=r"takes 3\.10 ms and the original 3\.00: it is not faster"):
        check_speed(result(3.0, 3.1), asked, force=False)
    assert check_speed(result(3.0, 3.1), asked, force=True)
    assert check_speed(result(3.0, 3.1), Budget(0.5), force=False) == ()


def test_a_last_timing_behind_what_was_asked_for_is_told() -> None:
    assert check_speed(result(4.0, 2.0), Budget(speedup=2, latency=2), force=False) == ()
    [said] = check_speed(result(4.0, 2.5), Budget(speedup=2), force=False)
    assert said.startswith("a speed-up of 2x was asked for; the last timing gave 1.60x")
    [said] = check_speed(result(4.0, 2.5), Budget(latency=2), force=False)
    assert said.startswith("2 ms were asked for; the last timing gave 2.50 ms")
