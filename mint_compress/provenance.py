"""How a report was made: the machine, the versions, the data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mint_compress.data.specs import Data


def described(data: Data | None) -> dict[str, Any] | None:
    if data is None:
        return None
    counts = dict(zip(("train", "validation", "test"), data.sizes, strict=True))
    return {
        "name": data.name, "input_shape": data.input_shape, "classes": data.classes, **counts,
        "mean": data.mean, "std": data.std,
    }  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    names = (
        "mint-compress",
        "torch",
        "torchvision",
        "torch-pruning",
        "onnx",
        "onnxruntime-gpu",
        "onnxruntime",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
