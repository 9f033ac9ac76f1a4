"""Times of single layers: which layers, at which widths, written right, and measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mint_exporters.onnx import OnnxExporter
from mint_exporters.onnx_layers import write_layer
from torch import nn

from mint_compress.exporting.layer_timing import time_layers
from mint_compress.settings import Benchmark

EXPORTER = OnnxExporter()
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(3, 8, 5, stride=2, padding=2), (2, 3, 17)),
    "2d": (nn.Conv2d(6, 8, (3, 1), padding=(1, 0), dilation=2, bias=False), (1, 6, 9, 7)),
    "3d": (nn.Conv3d(2, 4, 2), (1, 2, 4, 5, 6)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (1, 8, 6, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8, padding=1), (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), (1, 6, 5, 5)),
    "linear": (nn.Linear(7, 5), (3, 7)),
    "tokens": (nn.Linear(7, 5, bias=False), (2, 4, 7)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mint-compress" / "latency"


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_written_as_it_computes(name: str, tmp_path: Path) -> None:
    layer, shape = LAYERS[name]
    path = tmp_path / "layer.onnx"
    assert write_layer(layer, shape, path)
    given = torch.randn(shape)
    [found] = EXPORTER.open(path, device="cpu").run((given.numpy(),))
    np.testing.assert_allclose(found, layer(given).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_layer_is_timed_in_other_runtimes_too(cache: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from mint_exporters.openvino import OpenVinoExporter

    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3, padding_mode="reflect", padding=1))
    found = time_layers(net, torch.randn(1, 3, 12, 12), OpenVinoExporter(), Benchmark())
    assert [one.whole > 0 for one in found.values()] == [True, True]
    time_layers(net, torch.randn(1, 3, 12, 12), EXPORTER, Benchmark())
    assert len(list(cache.iterdir())) == 2


def test_what_it_cannot_write_is_left_to_the_exporter(tmp_path: Path) -> None:
    odd = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    assert not write_layer(odd, (1, 3, 6, 6), tmp_path / "layer.onnx")
    assert not write_layer(nn.LSTM(3, 4), (1, 3, 6), tmp_path / "layer.onnx")
    assert not (tmp_path / "layer.onnx").exists()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.twice = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 10)
        self.idle = nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        x = self.twice(self.twice(self.depthwise(self.first(x))))
        return self.head(x.mean((2, 3)))


def test_every_layer_that_is_called_is_timed_at_its_widths() -> None:
    found = time_layers(Net().train(), torch.randn(2, 3, 16, 16), EXPORTER, Benchmark())
    assert list(found) == ["first", "depthwise", "twice", "head"]
    assert (found["first"].inputs, found["first"].outputs) == ((3,), (8, 32, 64))
    assert (found["depthwise"].inputs, found["depthwise"].outputs) == ((0,), (8, 32, 64))
    assert (found["twice"].inputs, found["twice"].outputs) == ((8, 32, 64), (8, 32, 64))
    assert (found["head"].inputs, found["head"].outputs) == ((8, 32, 64), (8, 10))
    assert all((one.ms > 0).all() for one in found.values())


def test_what_was_timed_is_kept_for_the_machine(cache: Path) -> None:
    net, image = Net(), torch.randn(1, 3, 16, 16)
    first = time_layers(net, image, EXPORTER, Benchmark())
    [kept] = cache.iterdir()
    again = time_layers(net, image, EXPORTER, Benchmark())
    assert all((first[name].ms == again[name].ms).all() for name in first)
    time_layers(nn.Sequential(nn.Linear(3, 4)), torch.randn(1, 3), EXPORTER, Benchmark(threads=2))
    assert len(list(cache.iterdir())) == 2
    kept.write_text("damaged")
    assert time_layers(net, image, EXPORTER, Benchmark())["head"].whole > 0


def test_a_layer_that_is_called_twice_takes_twice_as_long() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    twice = nn.Sequential(layer, layer)
    image = torch.randn(1, 8, 32, 32)
    alone = time_layers(nn.Sequential(twice[0]), image, EXPORTER, Benchmark())["0"]
    both = time_layers(twice, image, EXPORTER, Benchmark())["0"]
    assert both.whole == pytest.approx(2 * alone.whole)  # of the same times, for they are kept


def test_where_nothing_can_be_kept_it_is_timed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert (
        time_layers(nn.Sequential(nn.Linear(3, 4)), torch.randn(1, 3), EXPORTER, Benchmark())["0"].whole > 0
    )
