"""A part of a network is exported where the whole cannot be; of detectors, what their heads say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detectors
import onnx
import pytest
import torch
from mint_exporters.onnx import OnnxExporter
from torch import Tensor, nn
from toydata import CLASSES, arrays

import mint_compress as mc
from mint_compress import MintError
from mint_compress.checkpoints.builders import Builder, remember_builder
from mint_compress.exporting.export_part import find_part
from mint_compress.nn.counting import parameters
from mint_compress.nn.detectors import RawHeads

OPTIONS: dict[str, Any] = {
    "ratio": 0.4, "round_to": 1, "epochs": 0, "heal_epochs": 0, "device": "cpu", "bench_seconds": 0.05,
}  # fmt: skip


class Deciding(nn.Module):
    """Its forward pass depends on values, as no exporter takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        self.body.inner = nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y if float(y.abs().max()) > 0 else 2 * y


def tensors_of(path: Path) -> set[str]:
    return {t.name for t in onnx.load(path).graph.initializer if len(t.dims) >= 2}


def test_a_module_is_exported_under_its_own_names_and_alone_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(MintError, match=r"depends on values .* --export-part exports a part of it"):
        mc.compress(Deciding(), arrays(), output=path, **OPTIONS)
    small, report = mc.compress(Deciding(), arrays(), output=path, export_part="body.inner", **OPTIONS)
    assert tensors_of(path) == {"body.inner.0.weight", "body.inner.2.weight", "body.inner.5.weight"}
    assert report.receipt is not None and report.receipt.export == parameters(small)
    assert any(note.startswith("the export holds body.inner, ") for note in report.notes)
    x = torch.randn(5, 3, 6, 6)
    [got] = OnnxExporter().open(path, device="cpu").run((x.numpy(),))
    torch.testing.assert_close(torch.from_numpy(got), small.get_submodule("body")(x), rtol=1e-4, atol=1e-5)


class Two(nn.Module):
    """Gives what the plan makes narrower, and something that is as large as before."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, y.mean((1, 2, 3))


def first_layer(network: Any) -> nn.Module:
    return Two(network.body.inner[0])


def copied_layer(network: Any) -> nn.Module:
    return nn.Conv2d(3, 12, 3)


def test_a_part_of_ones_own_holds_what_it_holds_in_int8_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    small, report = mc.compress(
        Deciding(), arrays(), output=path, export_part=f"{__name__}:first_layer", int8=True, **OPTIONS
    )
    layer = small.get_submodule("body.inner.0")
    assert report.receipt is not None and report.receipt.export == parameters(layer) < parameters(small)
    assert report.int8 is not None and report.int8.float_original.agreement == 1.0
    assert report.int8.float_pruned.agreement is not None and report.int8.float_pruned.agreement < 1.0
    assert "exported" in str(report).replace("\n", " ").partition("Receipt")[2].partition("Parity")[0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("body.outer", r"--export-part 'body\.outer' names no module.* body, body\.inner"),
        (f"{__name__}:copied_layer", "gave a Conv2d. It must give a module that has layers of the network"),
        (f"{__name__}:nothing", "nothing"),
    ],
)
def test_what_is_no_part_is_refused_before_anything_is_computed(
    asked: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(MintError, match=said):
        mc.compress(Deciding(), arrays(), output=tmp_path / "a.onnx", export_part=asked, **OPTIONS)
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("make", [detectors.in_one_stage, detectors.in_two_stages])
def test_raw_heads_say_what_the_detectors_heads_say(make: Any) -> None:
    network, images = make(), torch.rand(2, 3, detectors.SIZE, detectors.SIZE)
    said: list[Any] = []
    head = network.rpn.head if hasattr(network, "rpn") else network.head
    with torch.no_grad(), head.register_forward_hook(lambda _, __, out: said.append(out)):
        network(list(images))
        raw = RawHeads(network)(images)
    [own, again] = said
    torch.testing.assert_close(own, again)
    flat = raw if isinstance(own, dict) else (raw["objectness"], raw["deltas"])
    torch.testing.assert_close(flat, own)


def test_an_untrained_detector_goes_all_the_way(tmp_path: Path) -> None:
    model, path = detectors.in_two_stages(), tmp_path / "a.onnx"
    shape = (3, detectors.SIZE, detectors.SIZE)
    remember_builder(model, Builder("detectors:in_two_stages"), shape)
    small, report = mc.compress(model, output=path, calibration_images=8, **OPTIONS)
    assert report.ratio is not None and report.ratio.removed >= 0.4
    held = parameters(RawHeads(small))
    assert report.receipt is not None
    assert (report.receipt.modules, report.receipt.export) == (parameters(small), held)
    assert f"the export holds the raw heads, {held:,} of {parameters(small):,} parameters" in str(
        report.notes
    )
    graph = onnx.load(path).graph
    levels = [f"{what}_{i}" for what in ("features", "objectness", "deltas") for i in (0, 1)]
    assert [out.name for out in graph.output] == levels
    again, images = (
        mc.load(tmp_path / "a.safetensors", builder=detectors.in_two_stages),
        torch.rand(3, *shape),
    )
    with torch.no_grad():
        torch.testing.assert_close(again(images), small(images))
    one = find_part(small, None).of(small)
    with torch.no_grad():
        objectness = one(images)["objectness"][0]
    got = OnnxExporter().open(path, device="cpu").run((images.numpy(),))
    torch.testing.assert_close(torch.from_numpy(got[2]), objectness, rtol=1e-3, atol=1e-5)
