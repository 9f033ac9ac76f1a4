"""How a report was made: the machine, the versions, the data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mint_compress.data.data import Data
from mint_compress.options import options_of
from mint_compress.reporting.records import DataFacts, Machine
from mint_compress.settings import Job, Settings
from mint_compress.training.tasks.own import named


def described(data: Data | None) -> DataFacts | None:
    """What a report says about the data of a run."""
    if data is None:
        return None
    train, validation, test = data.sizes
    return DataFacts(
        name=data.name, input_shape=data.input_shape, classes=data.classes,
        train=train, validation=validation, test=test, mean=data.mean, std=data.std,
    )  # fmt: skip


def named_settings(settings: Settings) -> dict[str, Any]:
    """Option -> value; of a task, a loss or a metric that is an object, its name."""
    flat = settings.flat()
    for option in options_of(Job):
        value = flat[option]
        flat[option] = value if value is None or isinstance(value, str) else named(value)
    return flat


def machine(device: torch.device) -> Machine:
    """The machine that a run takes place on, and the ``device`` that it computes with."""
    return Machine(
        system=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        threads=torch.get_num_threads(),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of those packages a run depends on that are installed."""
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
