"""Any number of exports side by side: on the same inputs, with their sizes, whatever runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import Chain

from mint_compress.errors import MintError
from mint_compress.exporting.comparison import Comparison, TimedExport, compare_files
from mint_compress.exporting.protocol import export
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark

ONCE = Benchmark(provider="cpu", seconds=1e-9)


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


def test_a_table_with_a_row_for_each() -> None:
    first = TimedExport("large.onnx", 46_720_000, "CPU", Latency(12.5, 13.0, None, 40), 1.0)
    second = TimedExport("small.xml", 4_210, "OpenVINO CPU", Latency(0.0042, 0.0061, 0.0103, 140), 2976.19)
    assert str(Comparison((first, second))).splitlines() == [
        "export      on                 MB  median ms       p90      p99  runs    faster",
        "large.onnx  CPU              46.7      12.50     13.00        -    40     1.00x",
        "small.xml   OpenVINO CPU  0.00421   0.004200  0.006100  0.01030   140  2976.19x",
    ]


def test_a_smaller_file_is_faster_and_any_number_is_taken(tmp_path: Path) -> None:
    large = write_linear(tmp_path / "large.onnx", 256, 4096)
    small = write_linear(tmp_path / "small.onnx", 256, 64)
    how = Benchmark(provider="cpu", batch=8, seconds=0.3)
    one, two, three = compare_files((large, small, large), how).exports
    assert (one.path, one.bytes, one.speedup) == (str(large), large.stat().st_size, 1.0)
    assert two.provider == "CPUExecutionProvider" and two.speedup > 2
    assert two.speedup == one.latency_ms.median / two.latency_ms.median
    assert one.latency_ms.runs == two.latency_ms.runs == three.latency_ms.runs
    assert [x.speedup for x in compare_files([small], ONCE).exports] == [1.0]


def test_runtimes_are_mixed_and_both_files_of_one_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'mint-compress[openvino]'")
    for name in ("a.onnx", "a.xml"):
        export(Chain().eval(), (torch.randn(2, 3, 6, 6),), tmp_path / name)
    first, second = compare_files((tmp_path / "a.onnx", tmp_path / "a.xml"), ONCE).exports
    assert (first.provider, second.provider) == ("CPUExecutionProvider", "OpenVINO CPU")
    assert second.bytes == sum((tmp_path / f"a.{ending}").stat().st_size for ending in ("xml", "bin"))


def test_open_shapes_come_from_the_caller(tmp_path: Path) -> None:
    path = write_linear(tmp_path / "open.onnx", 8, 4, ["batch", "length", 8])
    both: Any = (path, path)
    with pytest.raises(MintError, match=r"x float32\[\?,\?,8\] open. Give --input-shape"):
        compare_files(both, ONCE)
    with pytest.raises(MintError, match=r"Input shape \(3, 9\) does not fit x float32\[\?,\?,8\]"):
        compare_files(both, ONCE, input_shape=(3, 9))
    result = compare_files(both, ONCE, input_shape=(3, 8))
    assert result.exports[0].latency_ms.runs == 3


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    wide = write_linear(tmp_path / "wide.onnx", 8, 4)
    narrow = write_linear(tmp_path / "narrow.onnx", 6, 4)
    with pytest.raises(MintError, match=r"takes x float32\[\?,8\].*takes x float32\[\?,6\].*not comparable"):
        compare_files((wide, wide, narrow), ONCE)
    fixed = write_linear(tmp_path / "fixed.onnx", 8, 4, [4, 8])
    with pytest.raises(MintError, match="fixed batch of 4; 1 was asked for"):
        compare_files((fixed, wide), ONCE)
    with pytest.raises(MintError, match=r"fixed.onnx' takes x float32\[4,8\]: not comparable"):
        compare_files((wide, fixed), ONCE)
    how = Benchmark(provider="cpu", batch=4, seconds=1e-9)
    assert compare_files((fixed, wide), how).exports[1].latency_ms.runs == 3
