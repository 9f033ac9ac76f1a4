"""Exports that take images of other heights and widths, where the network does; one is tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import mint_compress as mint
from mint_compress.errors import CheckFailed, MintError
from mint_compress.exporting.parity import check_other_size
from mint_compress.exporting.protocol import find_exporter
from mint_compress.exporting.session import Session

QUICK: dict[str, Any] = {
    **{"ratio": 0.5, "input_shape": (3, 32, 32), "calibration_images": 64},
    **{"bench_seconds": 0.1, "device": "cpu"},
}


class Seg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, 1, 1)
        self.out, self.edge = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        h = self.a(image).relu()
        return {"mask": self.out(h), "edge": self.edge(h).sigmoid()}


def test_any_height_and_width_goes_in_and_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "seg.onnx"
    small, report = mint.compress(Seg().eval(), None, output=path, dynamic_size=True, **QUICK)
    said = "the export takes images of other sizes: 64x96 was tried, and agrees with PyTorch"
    assert said in report.notes and report.settings["dynamic_size"] is True
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [one.name for one in session.get_outputs()] == ["mask", "edge"]
    x = torch.randn(3, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = small(x)
    for got, name in zip(found, ("mask", "edge"), strict=True):
        np.testing.assert_allclose(got, wanted[name].numpy(), atol=1e-5)


def test_a_network_of_one_size_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 32 * 32, 2))
    stages: list[str] = []
    with pytest.raises(
        MintError, match=r"does not take images of 64x96\. Leave out --dynamic-size"
    ) as caught:
        mint.compress(
            flat.eval(), None, output=tmp_path / "a.onnx", dynamic_size=True,
            progress=lambda stage, *_: stages.append(stage), **QUICK,
        )  # fmt: skip
    assert "calibrate" not in stages and "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    rows = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    with pytest.raises(MintError, match="dynamic-size is for images"):
        mint.compress(
            rows, None, output=tmp_path / "b.onnx", dynamic_size=True, **{**QUICK, "input_shape": (8,)}
        )


class Sized(nn.Module):
    """Computes with the size it was traced at, in a way that tracing does not see."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 4, 1), side

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.side


def test_an_export_that_says_something_else_is_found(tmp_path: Path) -> None:
    network, path = Sized(32).eval(), tmp_path / "a.onnx"
    samples = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mint.export(network, samples, path, dynamic_size=True)
    session: Session = find_exporter(path).open(path)
    assert check_other_size(network, session, samples) == (64, 96)
    network.side = 33
    with pytest.raises(CheckFailed, match="differs from the pruned one"):
        check_other_size(network, session, samples)
    fixed = tmp_path / "fixed.onnx"
    mint.export(network, samples, fixed)
    with pytest.raises(MintError, match="The export does not take images of 64x96"):
        check_other_size(network, find_exporter(fixed).open(fixed), samples)
