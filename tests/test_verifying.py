"""verify: what is kept beside an export, and what is found out from it, with nothing but a runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from networks import Chain
from toydata import arrays

from mint_compress import CheckFailed, MintError, Report, compress
from mint_compress.cli.app import main
from mint_compress.exporting.samples import Samples
from mint_compress.files import sha256_of
from mint_compress.settings import Benchmark
from mint_compress.verifying import verify_export

QUICK = Benchmark(seconds=0.02)
OPTIONS: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "epochs": 0, "device": "cpu", "bench_seconds": 0.05}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    path = tmp_path_factory.mktemp("verify") / "small.onnx"
    return path, compress(Chain(16, 16), arrays(), output=path, **OPTIONS, int8=True)[1]


@pytest.fixture
def export(made: tuple[Path, Report], tmp_path: Path) -> Path:
    """A copy that may be spoiled, under a name of its own."""
    for ending in ("onnx", "verify.npz"):
        shutil.copy(made[0].with_suffix(f".{ending}"), tmp_path / f"copy.{ending}")
    return tmp_path / "copy.onnx"


def changed(export: Path, **facts: Any) -> None:
    path = export.with_suffix(".verify.npz")
    replace(Samples.read(path), **facts).write(path)


def test_samples_are_kept_with_what_the_report_says(made: tuple[Path, Report]) -> None:
    path, report = made
    kept = Samples.read(path.with_suffix(".verify.npz"))
    assert report.parameters is not None and report.latency_ms is not None
    assert kept.parameters == report.parameters.after
    assert kept.median_ms == report.latency_ms.pruned.median
    assert kept.sha256 == {"small.onnx": sha256_of(path)} and kept.inputs[0].shape == (2, 3, 6, 6)
    assert str(path.with_suffix(".verify.npz")) in report.sha256


def test_a_good_file_is_good_under_any_name_without_pytorch(export: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, onnx=None)\n"
        "from mint_compress.cli.app import main; main(['verify', sys.argv[1], '--seconds', '0.02', '--json'])"
    )
    command = [sys.executable, "-c", code, str(export)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    said = json.loads(done.stdout)
    assert said["samples"] == 2 and said["max_rel"] < 1e-5 and said["latency_ms"]["runs"] >= 3


def test_int8_is_verified_by_its_own_samples(made: tuple[Path, Report]) -> None:
    found = verify_export(made[0].with_name("small.int8.onnx"), QUICK)
    assert made[1].int8 is not None
    assert found.median_ms_then == made[1].int8.int8_pruned.latency_ms.median
    assert re.fullmatch(
        r"Hash        as it was made: \S*small\.int8\.onnx, [\d,]+ parameters\n"
        r"Samples     2 give what they gave: differs by at most \S+ \(\S+ relative\)\n"
        r"Latency     median [\d.]+ ms on CPUExecutionProvider; [\d.]+ ms where it was made "
        r"\(\w+, threads 1, batch 1\)",
        str(found),
    )


def test_another_file_is_told_by_its_hash(export: Path) -> None:
    with export.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckFailed, match=r"copy\.onnx is not the file that was made: SHA-256"):
        verify_export(export, QUICK)
    result = CliRunner().invoke(main, ["verify", str(export)])
    assert result.exit_code == 1


def test_outputs_that_differ_are_told_with_their_share(export: Path) -> None:
    (output,) = Samples.read(export.with_suffix(".verify.npz")).outputs
    off = output.copy()
    off.flat[0] += 0.5 * np.abs(output).max()
    changed(export, outputs=(off,))
    share = 0.5 * np.abs(output).max() / np.abs(off).max()
    with pytest.raises(CheckFailed, match=re.escape(f"differs from what it gave by {share:.1e} of its")):
        verify_export(export, QUICK)
    changed(export, outputs=(output[:, :2],))
    with pytest.raises(CheckFailed, match=r"gives outputs of shapes \[\(2, 4\)\]; it gave \[\(2, 2\)\]"):
        verify_export(export, QUICK)


def test_a_latency_that_is_asked_for_must_hold(export: Path) -> None:
    assert verify_export(export, QUICK, max_latency=1e4).latency_ms.median < 1e4
    with pytest.raises(CheckFailed, match=r"takes .* ms \(median\); 1e-06 are allowed"):
        verify_export(export, QUICK, max_latency=1e-6)


def test_bad_input_is_told_in_a_line(export: Path, tmp_path: Path) -> None:
    samples = export.with_suffix(".verify.npz")
    with pytest.raises(MintError, match="No such export file"):
        verify_export(tmp_path / "none.onnx")
    (tmp_path / "a.tflite").touch()
    samples_of_it = tmp_path / "a.verify.npz"
    replace(Samples.read(samples), sha256={"a": sha256_of(tmp_path / "a.tflite")}).write(samples_of_it)
    with pytest.raises(MintError, match=r"No runtime here opens 'a\.tflite'.* open: \.onnx"):
        verify_export(tmp_path / "a.tflite")
    changed(export, names=("other",))
    with pytest.raises(CheckFailed, match=r"The file takes x; the samples are other"):
        verify_export(export)
    samples.write_bytes(samples.read_bytes()[:-40])
    with pytest.raises(MintError, match="is damaged") as raised:
        verify_export(export)
    assert raised.value.exit_code == 2
    samples.unlink()
    with pytest.raises(MintError, match=r"No copy\.verify\.npz beside the export"):
        verify_export(export)
