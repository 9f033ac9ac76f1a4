"""Latency: taken in turn, counted right, and only between models that can be compared."""

import gc
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from mint_compress.errors import MintError
from mint_compress.exporting.benchmarking import BenchmarkResult, benchmark, benchmark_files
from mint_compress.exporting.session import Array, InputSpec
from mint_compress.exporting.timing import latency
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark


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


def write_linear(path: Path, inputs: int, outputs: int, shape: list[int | str] | None = None) -> Path:
    """An ONNX file with one matrix product, made by hand."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).standard_normal((inputs, outputs)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, shape or ["batch", inputs])],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


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


def test_result_prints_itself() -> None:
    result = BenchmarkResult(Latency(12.5, 13.0, None, 40), Latency(5.0, 6.25, 7.125, 140), 2.5, "CPU")
    assert str(result).splitlines() == [
        "ms          median       p90       p99    runs",
        "original     12.50     13.00         -      40",
        "pruned       5.000     6.250     7.125     140",
        "speed-up 2.50x on CPU",
    ]
    tiny = Latency(0.0042, 0.0061, 0.0103, 140)
    row = str(BenchmarkResult(tiny, tiny, 1.0, "CPU")).splitlines()[1]
    assert row.split() == ["original", "0.004200", "0.006100", "0.01030", "140"]


def test_a_smaller_file_is_faster(tmp_path: Path) -> None:
    large = write_linear(tmp_path / "large.onnx", 256, 4096)
    small = write_linear(tmp_path / "small.onnx", 256, 64)
    result = benchmark_files(large, small, Benchmark(provider="cpu", batch=8, seconds=0.3))
    assert result.provider == "CPUExecutionProvider"
    assert result.speedup > 2


def test_open_shapes_come_from_the_caller(tmp_path: Path) -> None:
    path = write_linear(tmp_path / "open.onnx", 8, 4, ["batch", "length", 8])
    with pytest.raises(MintError, match=r"x float32\[\?,\?,8\] open. Give --input-shape"):
        benchmark_files(path, path, Benchmark(provider="cpu", seconds=1e-9))
    with pytest.raises(MintError, match=r"Input shape \(3, 9\) does not fit x float32\[\?,\?,8\]"):
        benchmark_files(path, path, Benchmark(provider="cpu", seconds=1e-9), input_shape=(3, 9))
    result = benchmark_files(path, path, Benchmark(provider="cpu", seconds=1e-9), input_shape=(3, 8))
    assert result.original.runs == 3


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    wide = write_linear(tmp_path / "wide.onnx", 8, 4)
    narrow = write_linear(tmp_path / "narrow.onnx", 6, 4)
    with pytest.raises(MintError, match=r"takes x float32\[\?,8\].*takes x float32\[\?,6\].*not comparable"):
        benchmark_files(wide, narrow, Benchmark(provider="cpu", seconds=1e-9))
    fixed = write_linear(tmp_path / "fixed.onnx", 8, 4, [4, 8])
    with pytest.raises(MintError, match="fixed batch of 4; 1 was asked for"):
        benchmark_files(fixed, fixed, Benchmark(provider="cpu", seconds=1e-9))
    assert benchmark_files(fixed, fixed, Benchmark(provider="cpu", batch=4, seconds=1e-9)).original.runs == 3
