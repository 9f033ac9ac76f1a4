"""Latency: taken in turn, counted right, and only between models that can be compared."""

import gc
import time

import numpy as np
import pytest

from mint_compress.errors import MintError
from mint_compress.exporting.benchmarking import benchmark
from mint_compress.exporting.session import Array, InputSpec
from mint_compress.exporting.timing import latency


class Recorder:
    """A session that takes a given time and writes down when it was run."""

    def __init__(self, name: str, log: list[str], milliseconds: float = 0.0, provider: str = "CPU") -> None:
        self.name, self.log, self.milliseconds, self.provider = name, log, milliseconds, provider
        self.inputs = [InputSpec("x", (None, 2), "float32")]
        self.collecting: set[bool] = set()

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        self.log.append(self.name)
        self.collecting.add(gc.isenabled())
        end = time.perf_counter() + self.milliseconds / 1e3
        while time.perf_counter() < end:
            pass
        return list(inputs)


X = (np.zeros((1, 2), np.float32),)


def test_runs_alternate_after_the_warm_up() -> None:
    log: list[str] = []
    result = benchmark(Recorder("A", log), Recorder("B", log), X, seconds=0.02, warmup=2)
    assert log == ["A", "B"] * (len(log) // 2)
    assert result.original.runs == result.pruned.runs == len(log) // 2 - 2


def test_a_slow_model_is_run_three_times_all_the_same() -> None:
    log: list[str] = []
    result = benchmark(Recorder("A", log, 2.0), Recorder("B", log), X, seconds=0.0, warmup=1)
    assert log == ["A", "B"] * 4
    assert result.original.runs == 3
    assert result.original.p99 is None


def test_latency_is_in_milliseconds_and_speedup_is_the_ratio_of_medians() -> None:
    log: list[str] = []
    result = benchmark(Recorder("A", log, 4.0), Recorder("B", log, 1.0), X, seconds=0.2)
    assert 4.0 <= result.original.median < 40.0
    assert result.speedup == result.original.median / result.pruned.median
    assert result.speedup > 1.5


def test_collector_is_off_during_the_runs_and_back_on_afterwards() -> None:
    session = Recorder("A", [])
    assert gc.isenabled()
    benchmark(session, Recorder("B", []), X, seconds=0.0, warmup=0)
    assert session.collecting == {False}
    assert gc.isenabled()
    gc.disable()
    try:
        benchmark(session, session, X, seconds=0.0, warmup=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_different_providers_are_not_compared() -> None:
    with pytest.raises(MintError, match="runs on CUDA, the pruned model on CPU"):
        benchmark(Recorder("A", [], provider="CUDA"), Recorder("B", []), X)


def test_progress_ends_at_the_total() -> None:
    calls: list[tuple[str, int, int]] = []
    sessions = Recorder("A", []), Recorder("B", [])
    benchmark(*sessions, X, seconds=0.6, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("benchmark", 6, 6)
    assert len(calls) <= 4
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_percentiles_are_linear_between_the_ranks() -> None:
    got = latency([float(i) for i in range(100, 0, -1)])
    assert (got.median, got.p90, got.p99) == pytest.approx((50.5, 90.1, 99.01))
    assert got.runs == 100
    got = latency([3.0, 1.0, 2.0, 10.0])
    assert (got.median, got.p90) == pytest.approx((2.5, 7.9))
    assert (got.p99, got.runs) == (None, 4)
    values = np.random.default_rng(0).exponential(size=137)
    got = latency(values.tolist())
    assert (got.median, got.p90, got.p99) == pytest.approx(np.quantile(values, [0.5, 0.9, 0.99]))
