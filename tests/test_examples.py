"""The examples run as a reader would run them, made small."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mint_compress import zoo

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUICK = ["--epochs", "1", "--images", "32", "--device", "cpu"]


def test_the_vgg16_script_writes_a_checkpoint_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("train_vgg16_digits")
    out = tmp_path / "demo" / "vgg16.pt"
    assert script.main([str(out), *QUICK]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("digits: 1,295 train")
    assert printed[-1].startswith(f"{out}: accuracy ")
    assert printed[-1].endswith(f"on 32 test images, {out.stat().st_size / 1e6:.1f} MB")
    assert [p.name for p in out.parent.iterdir()] == ["vgg16.pt"]

    found = torch.load(out, weights_only=True)
    assert found["arch"] == "vgg16_cifar"
    assert found["settings"] == {"epochs": 1, "seed": 0, "images": 32}
    model = zoo.BUILDERS[found["arch"]](num_classes=10)
    model.load_state_dict(found["state_dict"])

    written = out.stat().st_mtime_ns
    assert script.main([str(out), *QUICK]) == 0
    assert "is there already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == written

    assert script.main([str(out), *QUICK, "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {out} is there, and not from these settings.")
    out.write_bytes(b"something else")
    assert script.main([str(out), *QUICK]) == 2
    assert out.read_bytes() == b"something else"


@pytest.mark.slow
def test_the_vgg16_script_reaches_its_accuracy(tmp_path: Path) -> None:
    script = load("train_vgg16_digits")
    out = tmp_path / "vgg16.pt"
    assert script.main([str(out)]) == 0
    assert torch.load(out, weights_only=True)["accuracy"] >= 0.986
