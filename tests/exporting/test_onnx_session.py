"""ONNX Runtime comes as one of two packages: what is said of the one that is there, of both, of none."""

import logging
import sys
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest
import torch
from mint_exporters import onnx_session
from mint_exporters.onnx import OnnxExporter
from networks import Chain

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import export
from mint_compress.provenance import versions


def installed(folder: Path, *names: str) -> str:
    """A folder in which these distributions are installed, as far as their metadata says."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
    return str(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "chain.onnx"
    export(Chain().eval(), (torch.randn(2, 3, 6, 6),), path)
    return path


@pytest.mark.parametrize("name", onnx_session.PACKAGES)
def test_a_report_names_the_package_that_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [installed(tmp_path, name)])
    assert {key: n for key, n in versions().items() if key.startswith("onnxruntime")} == {name: "9.0"}


def test_both_side_by_side_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(installed(tmp_path, *onnx_session.PACKAGES))
    with caplog.at_level(logging.WARNING):
        onnx_session._warn_of_two_packages.__wrapped__()
    assert "onnxruntime 9.0 and onnxruntime-gpu 9.0 are both installed" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("onnxruntime", "computes on the CPU alone: uninstall it, then install onnxruntime-gpu"),
        ("onnxruntime-gpu", r"CPUExecutionProvider\. Install onnxruntime-gpu\[cuda,cudnn\] and"),
    ],
)
def test_the_way_to_cuda_depends_on_the_package(
    exported: Path, name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert onnxruntime.InferenceSession  # imported above, for from now on only metadata can be found
    monkeypatch.setattr(sys, "path", [installed(tmp_path, name)])
    with pytest.raises(MintError, match=rf"^CUDA was asked for.*{way}.*, or ask for the CPU\.$"):
        OnnxExporter().open(exported, device="cuda")
    assert OnnxExporter().open(exported, device="auto").provider == "CPUExecutionProvider"


def test_without_either_it_says_which_to_install(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MintError, match=r"^ONNX Runtime cannot be imported .*Install one of them: onnxruntime"
    ):
        OnnxExporter().open(exported)


def test_what_an_uninstalled_one_leaves_of_the_other_is_no_runtime(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(MintError, match=r"incomplete, .* Uninstall both and install one of them"):
        OnnxExporter().open(exported)
