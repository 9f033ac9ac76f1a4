"""Bad input to the real command: one clear line, status 2, nothing written, nothing executed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused
from torch import nn

from mint_compress.zoo import BUILDERS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two networks; the weights do not matter here."""
    for file, name in (("mlp.pt", "mlp"), ("resnet20.pt", "resnet20_cifar")):
        torch.save(BUILDERS[name]().state_dict(), tmp_path / file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINT_COMPRESS_DEBUG", raising=False)
    return tmp_path


def write(content: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "bad.pt").write_bytes(content)

    return make


def truncated(folder: Path) -> None:
    whole = (folder / "mlp.pt").read_bytes()
    (folder / "bad.pt").write_bytes(whole[: len(whole) // 2])


def flipped(folder: Path) -> None:
    content = bytearray((folder / "mlp.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "bad.pt").write_bytes(content)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def malicious(folder: Path) -> None:
    torch.save({"state_dict": torch.load(folder / "mlp.pt"), "args": Evil()}, folder / "bad.pt")


def scripted(folder: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), folder / "bad.pt")


def exported(folder: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), folder / "bad.pt2")
    (folder / "bad.pt2").rename(folder / "bad.pt")


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


def custom(folder: Path) -> None:
    torch.save(Custom(), folder / "bad.pt")


def misfit(folder: Path) -> None:
    state = torch.load(folder / "resnet20.pt")
    state["fc.weight"] = state.pop("linear.weight")
    torch.save(state, folder / "bad.pt")


def not_a_number(folder: Path) -> None:
    state = torch.load(folder / "mlp.pt")
    state["layers.2.weight"][7, 3] = torch.nan
    torch.save(state, folder / "bad.pt")


BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "absent": (lambda _: None, "No such model file: 'bad.pt'"),
    "empty": (write(b""), "bad.pt is empty"),
    "truncated": (truncated, "bad.pt"),
    "html": (write(b"<!DOCTYPE html><html><body>404</body></html>"), "is a web page"),
    "random": (write(np.random.default_rng(0).bytes(4000)), "bad.pt"),
    "malicious": (malicious, "so it was not read"),
    "torchscript": (scripted, r"TorchScript.*torch\.save\(model\.state_dict"),
    "pt2": (exported, r"\.pt2.*torch\.save\(model\.state_dict"),
    "custom class": (custom, "--trust"),
    "fits nothing": (misfit, "nearest is zoo:resnet20_cifar.*'linear.weight'.*'fc.weight'"),
    "nan": (not_a_number, "layers.2.weight"),
    "flipped": (flipped, "bad.pt"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(folder: Path, kind: str) -> None:
    make, says = BAD_FILES[kind]
    make(folder)
    said = refused(folder, "bad.pt --ratio 0.5 -o out.onnx --data digits")
    assert re.search(says, said), said
    assert "weights_only=False" not in said
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--ratio 0", "ratio must lie between 0 and 1"),
        ("--ratio 1", "ratio must lie between 0 and 1"),
        ("--ratio -0.5", "ratio must lie between 0 and 1"),
        ("--ratio 0.5 --estimator gim", "Unknown estimator 'gim'. Choose from: gaussian, gmi"),
        ("--ratio 0.5 -o none/out.onnx", "Output folder 'none' does not exist"),
        ("--ratio 0.5 -o out.tflite", r"No exporter writes 'out.tflite'. Choose a suffix from: .*\.onnx"),
        ("--ratio 0.5 --data shape.npz", "3x8x8|1x28x28"),
        ("--ratio 0.5 --data one.npz", "one class only"),
        ("--ratio 0.5 --data digits --calibration-images 5000", "5000 calibration images were asked for"),
        ("--ratio 0.5 --data digits --samples-per-class 5000 --estimator gmi", "50000 calibration images"),
        ("--ratio 0.5 --arch resnet20_cifar", "does not fit --arch resnet20_cifar"),
        ("--ratio 0.5 --input-shape 3,32,32", "could not be traced"),
        ("--plan mlp.pt", "not a pruning plan"),
    ],
)
def test_bad_options(folder: Path, options: str, says: str) -> None:
    rng = np.random.default_rng(0)
    shape, classes = ((3, 8, 8), 4) if "shape" in options else ((1, 28, 28), 1)
    images = rng.integers(0, 255, (40, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, 40)
    for name in ("shape", "one"):
        np.savez(folder / f"{name}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    said = refused(folder, f"mlp.pt -o out.onnx {options}")
    assert re.search(says, said), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_without_cuda(folder: Path) -> None:
    said = refused(folder, "mlp.pt --ratio 0.5 -o out.onnx --data digits --device cuda")
    assert "CUDA" in said


@pytest.mark.parametrize("name", ["out.onnx", "out.safetensors", "out.json", "out.html"])
def test_an_existing_output_needs_force(folder: Path, name: str) -> None:
    (folder / name).write_text("mine")
    said = refused(folder, "mlp.pt --ratio 0.5 -o out.onnx --data digits")
    assert f"'{name}' exists already. Replace it with --force" in said
    assert (folder / name).read_text() == "mine"
