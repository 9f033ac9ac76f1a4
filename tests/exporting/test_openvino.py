"""OpenVINO: two files that belong together, weights that can be counted, int8, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mint_exporters.openvino import OpenVinoExporter
from networks import Chain
from torch import nn
from toydata import CLASSES, arrays, task

from mint_compress import CheckFailed, MintError, Report, compress
from mint_compress.exporting.protocol import export, find_exporter, on_cpu
from mint_compress.exporting.receipt_export import check_export
from mint_compress.exporting.session import InputSpec
from mint_compress.files import sha256_of
from mint_compress.settings import Benchmark
from mint_compress.training.finetuning import finetune_
from mint_compress.verifying import verify_export

openvino = pytest.importorskip("openvino", reason="pip install 'mint-compress[openvino]'")

OPTIONS = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", "bench_seconds": 0.05}
QUICK = Benchmark(seconds=0.02)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, nn.Module]:
    """A network that has learnt the task, compressed with int8 beside it."""
    pytest.importorskip("nncf", reason="pip install 'mint-compress[openvino]'")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Chain(16, 16)
    finetune_(model, arrays().train, epochs=25, lr=0.1, batch_size=16, device="cpu", seed=0)
    path = tmp_path_factory.mktemp("openvino") / "small.xml"
    small, report = compress(model.eval(), arrays(), output=path, **OPTIONS, int8=True)
    return path, report, small


def constants(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and element type, as OpenVINO reads them from the file."""
    nodes = [n for n in openvino.Core().read_model(path).get_ops() if n.get_type_name() == "Constant"]
    return {
        n.get_friendly_name(): (tuple(n.get_output_shape(0)), n.get_element_type().get_type_name())
        for n in nodes
    }


def test_both_files_are_written_hashed_and_named(shipped: tuple[Path, Report, nn.Module]) -> None:
    path, report, _ = shipped
    endings = ("bin", "xml", "verify.npz", "int8.bin", "int8.xml", "int8.verify.npz")
    written = {f"small.{ending}" for ending in (*endings, "html", "json", "safetensors")}
    assert {file.name for file in path.parent.iterdir()} == written
    for ending in endings:
        file = path.with_name(f"small.{ending}")
        assert report.sha256[str(file)] == sha256_of(file)
    assert "The weights are in 'small.bin'; keep both files together." in report.notes
    assert report.provider == "OpenVINO CPU"


def test_every_weight_is_a_constant_of_its_name_and_shape(shipped: tuple[Path, Report, nn.Module]) -> None:
    path, report, small = shipped
    found = constants(path)
    for name, parameter in small.named_parameters():
        if parameter.ndim >= 2:
            assert found[name] == (tuple(parameter.shape), "f32")
    assert report.receipt is not None and report.parameters is not None
    assert report.receipt.export == report.receipt.tensors == report.parameters.after
    info = openvino.Core().read_model(path).get_rt_info(["mint_compress", "mint_compress"])
    assert info.value == report.versions["mint-compress"]


def test_int8_weights_are_integers_and_are_measured(shipped: tuple[Path, Report, nn.Module]) -> None:
    path, report, small = shipped
    int8 = path.with_name("small.int8.xml")
    kinds = [kind for shape, kind in constants(int8).values() if len(shape) >= 2 and np.prod(shape) > 16]
    layers = [p for p in small.parameters() if p.ndim >= 2]
    assert kinds.count("i8") == len(layers) and "f32" not in kinds
    assert report.int8 is not None
    both = int8.stat().st_size + int8.with_suffix(".bin").stat().st_size
    assert report.int8.int8_pruned.bytes == both
    images, labels = task(80, seed=2)
    [logits] = find_exporter(int8).open(int8).run((images.numpy(),))
    right = (logits.argmax(1) == labels.numpy()).mean()
    assert logits.shape == (80, CLASSES)
    assert report.int8.int8_pruned.quality == pytest.approx(float(right))
    assert report.int8.float_pruned.quality == report.quality.last


class Grouped(nn.Module):
    """Kernels in groups, one of them transposed, and a bias that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 12, 2, groups=4, bias=False)
        self.table = nn.Parameter(torch.randn(9, 12))
        self.register_buffer("places", torch.arange(5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.up(self.grouped(self.depthwise(x)))
        return {"features": y, "scores": y.mean((2, 3)) @ self.table.T + self.table[self.places].sum()}


@pytest.mark.parametrize("batch", [1, 7])
def test_grouped_kernels_are_counted_as_pytorch_has_them(tmp_path: Path, batch: int) -> None:
    network = Grouped().eval()
    made = export(network, (torch.randn(2, 6, 8, 8),), tmp_path / "grouped.xml")
    assert made.files == (tmp_path / "grouped.xml", tmp_path / "grouped.bin")
    assert sorted(os.listdir(tmp_path)) == ["grouped.bin", "grouped.xml"]
    assert made.tensors["grouped.weight"] == (8, 3, 3, 3) and made.tensors["up.weight"] == (8, 3, 2, 2)
    assert check_export(network, made.traced, made.tensors) == sum(p.numel() for p in network.parameters())
    session = OpenVinoExporter().open(made.path)
    assert session.inputs == [InputSpec("x", (None, 6, 8, 8), "float32")]
    x = torch.randn(batch, 6, 8, 8)
    with on_cpu(network) as reference, torch.no_grad():
        wanted = reference(x)
    for got, want in zip(session.run((x.numpy(),)), wanted.values(), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-5)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export(Chain().eval(), (torch.randn(2, 3, 6, 6),), tmp_path / "a.xml")
    session = OpenVinoExporter().open(tmp_path / "a.xml", threads=2)
    x = np.zeros((1, 3, 6, 6), np.float32)
    for given, said in (
        ((x, x), "takes 1 inputs, 2 were given"),
        ((x.astype(np.float64),), "takes float32; float64 were given"),
        ((x[:, :2],), "OpenVINO cannot run"),
    ):
        with pytest.raises(MintError, match=said) as raised:
            session.run(given)
        assert "\n" not in str(raised.value)
    with pytest.raises(MintError, match="OpenVINO has no device 'cuda'"):
        OpenVinoExporter().open(tmp_path / "a.xml", device="cuda")
    (tmp_path / "a.xml").write_text("<net")
    with pytest.raises(MintError, match="is not a model OpenVINO can open"):
        OpenVinoExporter().open(tmp_path / "a.xml")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(MintError, match=r"No such file: .*a\.bin"):
        OpenVinoExporter().open(tmp_path / "a.xml")


@pytest.mark.parametrize("mine", ["a.bin", "a.int8.bin"])
def test_weights_of_another_file_are_not_replaced_unasked(tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).write_bytes(b"mine")
    with pytest.raises(MintError, match=rf"{mine}' exists already"):
        compress(Chain(), arrays(), output=tmp_path / "a.xml", **OPTIONS, int8=True)
    assert [p.name for p in tmp_path.iterdir()] == [mine]


def test_a_renamed_export_is_verified_with_its_own_weights(
    shipped: tuple[Path, Report, nn.Module], tmp_path: Path
) -> None:
    for ending in ("xml", "bin", "verify.npz"):
        shutil.copy(shipped[0].with_suffix(f".{ending}"), tmp_path / f"copy.{ending}")
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, onnx=None, onnxruntime=None)\n"
        "from mint_compress.cli.app import main; main(['verify', sys.argv[1], '--seconds', '0.02'])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "copy.xml"], capture_output=True, text=True)
    assert done.returncode == 0 and "on OpenVINO CPU" in done.stdout, done.stderr
    assert verify_export(shipped[0].with_name("small.int8.xml"), QUICK).max_rel < 0.05

    weights = tmp_path / "copy.bin"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckFailed, match=r"copy\.bin is not the file that was made"):
        verify_export(tmp_path / "copy.xml", QUICK)


def test_nobody_is_told_that_it_is_used(tmp_path: Path) -> None:
    export(Chain().eval(), (torch.randn(2, 3, 6, 6),), tmp_path / "a.xml")
    code = (
        "import sys; from pathlib import Path; from mint_exporters.openvino_session import OpenVinoSession\n"
        "OpenVinoSession(Path(sys.argv[1])); print(sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.xml"], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


SIGNALLED = """
import gc, signal, sys
import numpy
from pathlib import Path
from mint_compress.exporting.protocol import find_exporter
from mint_exporters.openvino_session import OpenVinoSession

path = Path(sys.argv[1])
if sys.argv[2] == "int8":
    images = numpy.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype("float32")
    find_exporter(path).quantize(path, path.with_name("small.xml"), [(images,)])
first, second = OpenVinoSession(path), OpenVinoSession(path)
del first
gc.collect()
second.run((numpy.zeros((2, 3, 6, 6), "float32"),))
del second
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("bits", ["float", "int8"])
def test_signals_are_handled_after_sessions_have_ended(tmp_path: Path, bits: str) -> None:
    """Where the processor has AMX, two cores at a time leave a stack for signals that is gone."""
    if bits == "int8":
        pytest.importorskip("nncf", reason="pip install 'mint-compress[openvino]'")
    path = tmp_path / "a.xml"
    export(Chain().eval(), (torch.randn(2, 3, 6, 6),), path)
    done = subprocess.run([sys.executable, "-c", SIGNALLED, path, bits], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["interrupted"]), done.stderr
