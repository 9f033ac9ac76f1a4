"""int8: what is in the file, what is said of it, and what is refused."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mint_exporters import onnx_bias_correction, onnx_int8
from mint_exporters.onnx import OnnxExporter
from networks import Chain
from onnxruntime import quantization
from torch import Tensor, nn
from toydata import CLASSES, arrays, task

from mint_compress import MintError, Report, compress
from mint_compress.exporting import protocol
from mint_compress.exporting.fewer_bits import INT8, find_converter, remarks
from mint_compress.exporting.protocol import export
from mint_compress.nn.io import tensors_in, with_tensors
from mint_compress.reporting.records import ExportFigures, Latency, Metric
from mint_compress.training.evaluation import accuracy
from mint_compress.training.finetuning import finetune_

OPTIONS = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", "bench_seconds": 0.05, "int8": True}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A network that has learnt the task, compressed with int8 beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Chain(16, 16)
    finetune_(model, arrays().train, epochs=25, lr=0.1, batch_size=16, device="cpu", seed=0)
    path = tmp_path_factory.mktemp("int8") / "small.onnx"
    small, report = compress(model.eval(), arrays(), output=path, **OPTIONS)
    assert accuracy(small, arrays().test) == report.quality.last
    return path, report


def test_weights_are_integers_and_the_file_says_what_the_report_says(shipped: tuple[Path, Report]) -> None:
    path, report = shipped
    int8 = path.with_name("small.int8.onnx")
    assert report.int8 is not None and str(int8) in report.sha256 and str(int8) in report.files
    kept = onnx.load(int8).graph
    kinds = [t.data_type for t in kept.initializer if len(t.dims) >= 2]
    layers = [t for t in onnx.load(path).graph.initializer if len(t.dims) >= 2]
    assert kinds == [onnx.TensorProto.INT8] * len(layers)
    assert report.int8.int8_pruned.bytes == int8.stat().st_size
    assert report.int8.float_pruned.bytes == path.stat().st_size

    session = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"])
    images, labels = task(80, seed=2)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    right = (np.asarray(logits).argmax(1) == labels.numpy()).mean()
    assert report.int8.int8_pruned.quality == pytest.approx(float(right))
    assert np.asarray(logits).shape == (80, CLASSES)


def test_float_beside_it_is_what_was_measured_in_pytorch(shipped: tuple[Path, Report]) -> None:
    report = shipped[1]
    assert report.int8 is not None
    assert report.int8.float_original.quality == report.quality.original
    assert report.int8.float_pruned.quality == report.quality.last
    assert (report.int8.float_original.agreement, report.int8.float_original.speedup) == (1.0, 1.0)
    assert report.int8.int8_original.agreement is not None and report.int8.int8_original.agreement > 0.95
    assert Report.from_json(report.to_json()).int8 == report.int8
    lines = re.findall(r"(float|int8) (original|pruned): [\d.]+ MB, [\d.]+ %, ", str(report))
    assert len(lines) == 4


def test_there_must_be_real_images_and_an_exporter_that_knows_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MintError, match=r"int8 takes .* from real images\. Give --data") as raised:
        compress(Chain(), None, output=tmp_path / "a.onnx", input_shape=(3, 6, 6), **OPTIONS)
    assert raised.value.exit_code == 2

    class Other:
        name, suffixes = "other", (".other",)

    monkeypatch.setattr(protocol, "_installed", lambda: [Other()])
    with pytest.raises(MintError, match="exporter other does not write int8"):
        find_converter(Path("small.other"), INT8)


def test_an_int8_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.int8.onnx").touch()
    with pytest.raises(MintError, match=r"a\.int8\.onnx' exists already"):
        compress(Chain(), arrays(), output=tmp_path / "a.onnx", **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.int8.onnx"]


def test_what_fewer_bits_cost_is_told_when_it_is_much() -> None:
    one = ExportFigures(4, 0.9, 1.0, Latency(2.0, 2.0, None, 3), 1.0)
    good = replace(one, quality=0.891, latency_ms=Latency(1.0, 1.0, None, 3))
    bad = replace(one, quality=0.88, latency_ms=Latency(4.0, 4.0, None, 3))
    share = Metric("accuracy", "%")
    assert remarks("int8", one, good, share) == ()
    assert remarks("int8", one, bad, share) == (
        "int8 costs accuracy: -2.00 points against the pruned network in float",
        "int8 is slower than float on this machine, 0.50x: it may lack the instructions",
    )
    error = Metric("error", "mm", higher_is_better=False)
    assert remarks("fp16", one, good, error) == ()
    assert remarks("fp16", one, replace(good, quality=0.92), error) == (
        "fp16 costs error: +0.02 mm against the pruned network in float",
    )
    assert len(remarks("fp16", one, replace(good, quality=float("nan")), share)) == 1


def test_tensors_of_a_runtime_take_the_places_of_the_networks_own() -> None:
    @dataclass
    class Output:
        logits: Tensor
        more: object

    like = Output(torch.zeros(1), (torch.zeros(2), [OrderedDict(a=torch.zeros(3), b=7), None]))
    given: Iterator[Tensor] = iter([torch.full((1,), float(i)) for i in range(3)])
    made = with_tensors(like, given)
    assert made == {"logits": 0.0, "more": [1.0, [{"a": 2.0, "b": 7}, None]]}
    assert [float(t) for t in tensors_in(made)] == [0, 1, 2]


def test_what_rounding_weights_adds_on_average_is_taken_out_of_the_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 9, 3, groups=3), nn.ReLU(), nn.Flatten(),
        nn.Linear(9 * 4, 5),
    ).eval()  # fmt: skip
    x = 3 + 0.1 * torch.randn(64, 6, 6, 6)
    path = export(network, (x[:2],), tmp_path / "float.onnx").path

    def bias_of_outputs(name: str) -> float:
        OnnxExporter().quantize(path, tmp_path / name, [(x.numpy(),)])
        [float_], [int8] = (OnnxExporter().open(p).run((x.numpy(),)) for p in (path, tmp_path / name))
        return float(np.abs((int8 - float_).mean(0)).max() / np.abs(float_).max())

    found: list[int] = []

    def counted(*given: Any) -> int:
        found.append(onnx_bias_correction.correct_biases(*given))
        return found[-1]

    monkeypatch.setattr(onnx_int8, "correct_biases", counted)
    corrected = bias_of_outputs("corrected.onnx")
    assert found == [3]
    monkeypatch.setattr(onnx_int8, "correct_biases", lambda *_: 0)
    assert corrected < 0.5 * bias_of_outputs("as_rounded.onnx")


def test_of_any_number_of_samples_there_are_ranges(tmp_path: Path) -> None:
    # and of layers without a bias, of which there is nothing to correct
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()).eval()
    x = torch.randn(19, 3, 6, 6)
    path = export(network, (x[:2],), tmp_path / "float.onnx").path
    for batches in ([(x[:3].numpy(),)], [(x[:8].numpy(),), (x[8:].numpy(),)]):
        OnnxExporter().quantize(path, tmp_path / "int8.onnx", batches)
        [float_], [int8] = (OnnxExporter().open(p).run((x.numpy(),)) for p in (path, tmp_path / "int8.onnx"))
        assert np.abs(int8 - float_).mean() < 0.02 * np.abs(float_).max()


class Vanishing(nn.Module):
    """What its first layer gives is all but zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x) * 1e-43)
        return result


def test_activations_that_vanish_are_quantised_by_their_extremes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    made: list[str] = []
    quantize_static = quantization.quantize_static

    def noted(*given: Any, **named: Any) -> None:
        tried.append(named["calibrate_method"].name)
        quantize_static(*given, **named)
        made.append(tried[-1])

    monkeypatch.setattr(quantization, "quantize_static", noted)
    network, x = Vanishing().eval(), torch.randn(16, 3, 6, 6)
    path = export(network, (x[:2],), tmp_path / "float.onnx").path
    OnnxExporter().quantize(path, tmp_path / "int8.onnx", [(x.numpy(),)])
    # ONNX Runtime 1.21 finds percentiles of zeros, later versions fail at them: only then are others tried
    assert tried == ["Percentile", "MinMax"][: 1 + ("Percentile" not in made)] and made == tried[-1:]
    [int8] = OnnxExporter().open(tmp_path / "int8.onnx").run((x.numpy(),))
    wanted = network.last.bias.detach().numpy()  # type: ignore[union-attr]
    assert np.abs(int8 - wanted[None, :, None, None]).max() < 0.01
