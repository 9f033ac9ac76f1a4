"""How a report was made: the machine, the versions, the data."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.data.data import Data
from mint_compress.files import sha256_of
from mint_compress.options import options_of
from mint_compress.reporting.records import DataFacts, Machine
from mint_compress.settings import Benchmark, Export, Job, Settings
from mint_compress.surgery.pruning_plan import PruningPlan
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


def identity(of: object) -> str:
    """A name that is another one for other contents of a network or a file; of other objects their class."""
    if isinstance(of, nn.Module):
        digest = hashlib.sha256(str(of).encode())
        for name, tensor in of.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return f"{type(of).__name__} sha256:{digest.hexdigest()[:16]}"
    if not isinstance(of, (str, os.PathLike)):
        return type(of).__name__
    path = Path(of)
    return f"{path.name} sha256:{sha256_of(path)[:16]}" if path.is_file() else str(of)


def asked_for(model: object, data: object, plan: PruningPlan | None, settings: Settings) -> dict[str, Any]:
    """What the results of a run depend on, by name, as far as it is known before anything is read.

    Nothing depends on how many processes read images, on how the export is made, and, unless the plan goes by
    latency, on how it is timed.
    """
    at_the_end = (Export,) if settings.budget.price == "latency" else (Benchmark, Export)
    without = {one.name for kind in at_the_end for one in options_of(kind).values()} | {"workers"}
    chosen = {n.replace("_", "-"): v for n, v in named_settings(settings).items() if n not in without}
    known = {name: number for name, number in versions().items() if name in ("mint-compress", "torch")}
    given = {
        "model": identity(model),
        "data": None if data is None else identity(data),
        "plan": None if plan is None else hashlib.sha256(plan.to_json().encode()).hexdigest()[:16],
    }
    return {**known, **given, **chosen}


def found_out(data: Data | None, device: torch.device) -> dict[str, Any]:
    """What the results of a run depend on as well, once the data are read."""
    facts = described(data)
    of_data = {f"data {name}": value for name, value in vars(facts).items()} if facts else {}
    return {"device in use": str(device), **of_data}


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
        "openvino",
        "nncf",
        "executorch",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
