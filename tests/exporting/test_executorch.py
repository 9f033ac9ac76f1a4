"""ExecuTorch: weights that can be counted in the file, batches in pieces, names of inputs, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mint_exporters.executorch import LARGEST_BATCH, ExecuTorchExporter
from networks import Chain
from torch import nn
from toydata import arrays

from mint_compress import MintError, Report, compress
from mint_compress.exporting.parity import check_parity
from mint_compress.exporting.protocol import export
from mint_compress.exporting.receipt_export import check_export
from mint_compress.exporting.session import InputSpec
from mint_compress.settings import Benchmark
from mint_compress.verifying import verify_export

pytest.importorskip("executorch", reason="pip install 'mint-compress[executorch]'")

OPTIONS = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", "bench_seconds": 0.05}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    path = tmp_path_factory.mktemp("executorch") / "small.pte"
    return path, compress(Chain(16, 16), arrays(), output=path, **OPTIONS)[1]


def test_a_file_is_written_counted_compared_and_timed(shipped: tuple[Path, Report]) -> None:
    path, report = shipped
    written = {f"small.{ending}" for ending in ("pte", "verify.npz", "html", "json", "safetensors")}
    assert {file.name for file in path.parent.iterdir()} == written
    assert report.receipt is not None and report.parameters is not None and report.parity is not None
    assert report.receipt.export == report.receipt.tensors == report.parameters.after
    assert report.parity.max_rel < 1e-5 and report.provider == "ExecuTorch CPU"
    found = verify_export(path, Benchmark(seconds=0.02))
    assert found.parameters == report.parameters.after and found.max_rel < 1e-5


class Two(nn.Module):
    """Two inputs in a dict, a number among the outputs, a table, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.mask, self.idle = nn.Linear(4, 3), nn.Linear(5, 3), nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("places", torch.arange(5))

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        y = self.image(image) + self.mask(mask)
        looked_up = self.table[self.places].sum(0)  # type: ignore[index]
        return {"y": y, "number": 3, "best": (y @ self.table.T).argmax(1), "z": y.relu() + looked_up}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Two, Path]:
    network, path = Two().eval(), tmp_path_factory.mktemp("two") / "two.pte"
    inputs = {"mask": torch.randn(1, 5), "image": torch.randn(1, 4)}
    made = export(network, inputs, path, metadata={"mean": "0.5"})
    total = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("idle"))
    assert check_export(network, made.traced, made.tensors, never_run=("idle",)) == total
    assert made.tensors == {"image.weight": (3, 4), "mask.weight": (3, 5), "table": (9, 3)}
    return network, path


@pytest.mark.parametrize("batch", [1, 7, 2 * LARGEST_BATCH + 1])
def test_inputs_have_their_names_and_batches_any_size(two: tuple[Two, Path], batch: int) -> None:
    network, path = two
    session = ExecuTorchExporter().open(path)
    assert session.inputs == [
        InputSpec("mask", (None, 5), "float32"),
        InputSpec("image", (None, 4), "float32"),
    ]
    mask, image = torch.randn(batch, 5), torch.randn(batch, 4)
    with torch.no_grad():
        wanted = [x for x in network(image, mask).values() if isinstance(x, torch.Tensor)]
    got = session.run((mask.numpy(), image.numpy()))
    for one, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, want.numpy(), rtol=0, atol=1e-6)


def test_a_weight_that_the_file_lacks_is_missed(
    two: tuple[Two, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mint_exporters import executorch

    network, path = two
    found = executorch._lengths(path)
    assert found[4 * 12] == found[4 * 15] == 1
    found[4 * 15] -= 1
    monkeypatch.setattr(executorch, "_lengths", lambda _: found)
    inputs = {"mask": torch.randn(2, 5), "image": torch.randn(2, 4)}
    made = export(network, inputs, path.with_name("other.pte"))
    with pytest.raises(MintError, match=r"has no tensor 'mask\.weight' of shape \(3, 5\)"):
        check_export(network, made.traced, made.tensors, never_run=("idle",))


def test_what_does_not_fit_is_refused(
    two: tuple[Two, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = ExecuTorchExporter().open(two[1])
    mask, image = np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float32)
    for given in ((mask,), (mask, image[:, :3]), (mask, image.astype(np.float64))):
        with pytest.raises(MintError, match=r"batch first; .* were given"):
            session.run(given)
    with pytest.raises(MintError, match="ExecuTorch has no device 'cuda'"):
        ExecuTorchExporter().open(two[1], device="cuda")
    (tmp_path / "a.pte").write_bytes(b"not one")
    with pytest.raises(MintError, match="is not a model ExecuTorch can open"):
        ExecuTorchExporter().open(tmp_path / "a.pte")
    with pytest.raises(MintError, match=r"plans memory for one size of images\. Leave out --dynamic-size"):
        export(Chain().eval(), torch.randn(2, 3, 6, 6), tmp_path / "b.pte", dynamic_size=True)
    with pytest.raises(MintError, match="exporter executorch does not write int8"):
        compress(Chain(), arrays(), output=tmp_path / "b.pte", **OPTIONS, int8=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pte"]
    assert capfd.readouterr() == ("", "")


class Branches(nn.Module):
    """Its forward pass depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float(x.sum()) > 0 else x


def test_a_network_that_it_cannot_take_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(MintError, match="ExecuTorch cannot take Branches: ") as raised:
        export(Branches(), torch.randn(2, 3), tmp_path / "a.pte")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_pool_that_is_in_use_keeps_its_threads(
    two: tuple[Two, Path], caplog: pytest.LogCaptureFixture
) -> None:
    session = ExecuTorchExporter().open(two[1], threads=1)
    other = ExecuTorchExporter().open(two[1], threads=2)
    assert "it stays at 1, 2 were asked for" in caplog.text
    check_parity(two[0], session, {"mask": torch.randn(3, 5), "image": torch.randn(3, 4)}, logits=None)
    assert other.provider == "ExecuTorch CPU"
