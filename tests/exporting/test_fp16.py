"""fp16: what is in the file, how far it is from float, and where it is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mint_exporters.onnx import OnnxExporter
from networks import Chain
from toydata import arrays

from mint_compress import MintError, Report, compress
from mint_compress.exporting import protocol
from mint_compress.exporting.fewer_bits import FP16, find_converter
from mint_compress.exporting.protocol import export, find_exporter
from mint_compress.files import sha256_of
from mint_compress.settings import Benchmark
from mint_compress.verifying import verify_export

OPTIONS = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", "bench_seconds": 0.05, "fp16": True}


def test_weights_are_halves_and_outputs_stay_float(tmp_path: Path) -> None:
    network, x = Chain(8, 8).eval(), torch.randn(7, 3, 6, 6)
    made = export(network, (x[:2],), tmp_path / "a.onnx")
    OnnxExporter().halve(made.path, tmp_path / "half.onnx")
    graph = onnx.load(tmp_path / "half.onnx").graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) >= 2]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert [tuple(t.dims) for t in weights] == [
        tuple(t.dims) for t in onnx.load(made.path).graph.initializer if len(t.dims) >= 2
    ]
    [whole], [half] = (
        find_exporter(path).open(path, device="cpu").run((x.numpy(),))
        for path in (made.path, tmp_path / "half.onnx")
    )
    assert half.dtype == np.float32 and half.shape == whole.shape
    gap = float(np.abs(half - whole).max() / np.abs(whole).max())
    assert 0 < gap < 16 * np.finfo(np.float16).eps


def test_where_nothing_computes_in_halves_a_note_says_so(tmp_path: Path) -> None:
    _, report = compress(Chain(), arrays(), output=tmp_path / "a.onnx", **OPTIONS, provider="cpu")
    reason = (
        "fp16 was left out: it is for CUDAExecutionProvider, and the export runs on CPUExecutionProvider here"
    )
    assert reason in report.notes and report.fp16 is None
    assert not [path for path in tmp_path.iterdir() if "fp16" in path.name]


@pytest.fixture
def measured(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A run that takes the CPU for a provider of halves, or has a real one."""
    if request.param == "cpu":
        monkeypatch.setattr(OnnxExporter, "half_providers", ("CPUExecutionProvider",))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Chain()
    return compress(model, arrays(), output=tmp_path / "a.onnx", **OPTIONS, provider=request.param)[1]


NEEDS_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs CUDA and onnxruntime-gpu",
)


@pytest.mark.parametrize(
    "measured", ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, NEEDS_CUDA))], indirect=True, ids=str
)
def test_it_is_measured_beside_float(measured: Report, tmp_path: Path) -> None:
    half = tmp_path / "a.fp16.onnx"
    assert measured.fp16 is not None and measured.int8 is None
    assert measured.fp16.float_pruned.quality == measured.quality.last
    assert measured.fp16.fp16_pruned.bytes == half.stat().st_size
    assert measured.fp16.fp16_pruned.agreement is not None and measured.fp16.fp16_pruned.agreement > 0.9
    assert measured.sha256[str(half)] == sha256_of(half)
    assert Report.from_json(measured.to_json()).fp16 == measured.fp16
    assert "In fp16     float original: " in str(measured)
    assert verify_export(half, Benchmark(seconds=0.02)).max_rel < 0.01


def test_what_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MintError, match=r"fp16 is measured on test data, and there are none\. Give --data"):
        compress(Chain(), None, output=tmp_path / "a.onnx", input_shape=(3, 6, 6), **OPTIONS)
    (tmp_path / "a.fp16.verify.npz").touch()
    with pytest.raises(MintError, match=r"a\.fp16\.verify\.npz' exists already"):
        compress(Chain(), arrays(), output=tmp_path / "a.onnx", **OPTIONS)

    class Other:
        name, suffixes = "other", (".other",)

    monkeypatch.setattr(protocol, "_installed", lambda: [Other()])
    with pytest.raises(MintError, match="exporter other does not write fp16"):
        find_converter(Path("small.other"), FP16)
