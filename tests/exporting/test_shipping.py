"""The export comes first, and what can be kept of a run is kept where it fails last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mint_exporters.messages import of_pytorch
from mint_exporters.onnx import OnnxExporter
from torch import nn
from toydata import CLASSES, arrays

from mint_compress import CheckFailed, MintError, compress, load, save
from mint_compress.exporting.protocol import ExportResult
from mint_compress.exporting.shipping import _parity_images  # a report does not say how many were compared
from mint_compress.nn.counting import parameters
from mint_compress.nn.io import Inputs
from mint_compress.reporting import Report
from mint_compress.reporting.records import Counts

OPTIONS: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "epochs": 1, "device": "cpu", "bench_seconds": 0.05}
BEFORE = ["read the model", "analyse", "try the export"]


class Body(nn.Module):
    """A convolution of eight channels, and what is made of them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return y


class Early(Body):
    """Leaves early where it is sure: nothing that can be exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return x.mean((2, 3)) if not self.training and y.softmax(1).amax() > 2 else y


class EarlyOnceSmall(Body):
    """Can be exported as long as it has all of its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * 0 if self.body.out_channels < 8 and not self.training and y.softmax(1).amax() > 2 else y


class Remembers(Body):
    """Leaves what it computed last on itself."""

    last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(x)
        return self.last


class Stages:
    """The stages that were begun, in their order; stops at the end of one as Ctrl-C does."""

    def __init__(self, stop: str | None = None) -> None:
        self.stop, self.seen = stop, list[str]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.seen:
            self.seen.append(stage)
        if (stage, done) == (self.stop, total):
            raise KeyboardInterrupt


def test_a_network_that_cannot_be_exported_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    stages = Stages()
    with pytest.raises(MintError) as caught:
        compress(Early(), arrays(), output=tmp_path / "early.onnx", progress=stages, **OPTIONS)
    line = Early.forward.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        f"PyTorch cannot export Early to ONNX (test_shipping.py, line {line}): its forward pass depends on "
        "values that it computes, as in an 'if'. Write that with torch.where or torch.cond, or take it out. "
        "Nothing was computed yet. --export-part exports a part of it; without an output, compress() in "
        "Python needs no export."
    )
    assert caught.value.exit_code == 2 and stages.seen == BEFORE
    assert os.listdir(tmp_path) == []


def test_what_exports_nothing_needs_no_export(tmp_path: Path) -> None:
    stages = Stages()
    small, _ = compress(Early(), arrays(), progress=stages, **OPTIONS)
    compress(Early(), arrays(), output=tmp_path / "early.onnx", dry_run=True, progress=stages, **OPTIONS)
    assert not {"try the export", "export"} & {*stages.seen}
    assert parameters(small) < parameters(Early())
    assert os.listdir(tmp_path) == ["early.plan.json"]


def test_of_a_network_whose_pruned_form_cannot_be_exported_the_weights_are_kept(tmp_path: Path) -> None:
    stages, output = Stages(), tmp_path / "small.onnx"
    with pytest.raises(MintError) as caught:
        compress(EarlyOnceSmall(), arrays(), output=output, progress=stages, **OPTIONS)
    kept = tmp_path / "small.safetensors"
    assert str(caught.value).startswith(
        "PyTorch cannot export EarlyOnceSmall to ONNX (test_shipping.py, line "
    )
    said = f"The original was exported, the pruned network was not: its weights are kept in {kept}."
    assert str(caught.value).endswith(said) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2 and stages.seen[:3] == BEFORE and stages.seen[-1] == "export"
    # what it had come to is kept as well: another exporter may do
    assert {*os.listdir(tmp_path)} == {"small.safetensors", ".small.onnx.resume"}
    # they are those that the same run has without an output
    small, _ = compress(EarlyOnceSmall(), arrays(), **OPTIONS)
    again = load(kept, builder=EarlyOnceSmall)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }
    assert all(torch.equal(again.state_dict()[n], t) for n, t in small.state_dict().items())


def test_a_file_that_the_checker_refuses_fails_as_a_check_and_the_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = OnnxExporter.export

    def refuse_small(
        self: OnnxExporter, model: nn.Module, example_inputs: Inputs, path: Path, **rest: Any
    ) -> ExportResult:
        if parameters(model) < parameters(Body()):
            raise CheckFailed("The ONNX checker refuses it.")
        return export(self, model, example_inputs, path, **rest)

    monkeypatch.setattr(OnnxExporter, "export", refuse_small)
    with pytest.raises(
        CheckFailed, match=r"^The ONNX checker refuses it\. The original was exported, "
    ) as caught:
        compress(Body(), arrays(), output=tmp_path / "small.onnx", **OPTIONS)
    assert caught.value.exit_code == 1
    assert {*os.listdir(tmp_path)} == {"small.safetensors", ".small.onnx.resume"}


def test_weights_that_do_not_hold_what_they_should_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_another(model: nn.Module, path: Path, **rest: Any) -> None:
        save(Body(), path, **rest)

    monkeypatch.setattr("mint_compress.exporting.shipping.save", save_another)
    with pytest.raises(CheckFailed):
        compress(EarlyOnceSmall(), arrays(), output=tmp_path / "small.onnx", **OPTIONS)
    assert os.listdir(tmp_path) == [".small.onnx.resume"]


def test_the_original_is_exported_once_and_then_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, seen, stages = OnnxExporter.export, [], Stages()

    def counted(
        self: OnnxExporter, model: nn.Module, example_inputs: Inputs, path: Path, **rest: Any
    ) -> ExportResult:
        seen.append(parameters(model))
        return export(self, model, example_inputs, path, **rest)

    monkeypatch.setattr(OnnxExporter, "export", counted)
    small, report = compress(Body(), arrays(), output=tmp_path / "small.onnx", progress=stages, **OPTIONS)
    assert (
        seen == [report.parameters.before, report.parameters.after] == [parameters(Body()), parameters(small)]
    )
    assert report.latency_ms is not None and report.latency_ms.original.median > 0
    assert [s for s in stages.seen if s in ("try the export", "calibrate", "export")] == [
        "try the export",
        "calibrate",
        "export",
    ]
    endings = ("onnx", "verify.npz", "safetensors", "json", "html")
    assert {*os.listdir(tmp_path)} == {f"small.{ending}" for ending in endings}


def test_the_export_that_comes_first_changes_nothing(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    small, report = compress(Remembers(), arrays(), output=tmp_path / "small.onnx", **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    alone, same = compress(Remembers(), arrays(), **OPTIONS)
    assert report.plan == same.plan and report.accuracy == same.accuracy
    assert all(torch.equal(small.state_dict()[name], t) for name, t in alone.state_dict().items())


@pytest.mark.parametrize("stage", ["try the export", "fine-tuning", "export"])
def test_an_interrupted_run_leaves_what_it_had_come_to_and_nothing_else(tmp_path: Path, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(Body(), arrays(), output=tmp_path / "small.onnx", progress=Stages(stage), **OPTIONS)
    assert os.listdir(tmp_path) == ([] if stage == "try the export" else [".small.onnx.resume"])


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (
            "No function for x.\nCaused by: (site-packages/torch/fx.py:22 in run)\nFor more, see",
            "No function for x",
        ),
        ('Bad shape at File "/lib/torch/a.py", line 7, in run: 3 != 4.', "Bad shape at: 3 != 4"),
        ("Failed (/src/torch/csrc/op.cpp:12)", "Failed"),
        ("Caused by: nothing", "Caused by: nothing"),
    ],
)
def test_what_pytorch_says_is_told_without_places_in_packages(told: str, kept: str) -> None:
    assert of_pytorch(RuntimeError(told)) == kept


@pytest.mark.parametrize(("macs", "images"), [(1, 32), (10**10, 20), (10**12, 7)])
def test_a_large_network_is_compared_on_fewer_images(macs: int, images: int) -> None:
    assert _parity_images(Report(macs=Counts(10**13, macs))) == images
