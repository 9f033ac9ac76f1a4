"""An exporter that takes no time: its files are pickled modules, and PyTorch is their runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.exporting.protocol import ExportResult
from mint_compress.exporting.session import Array, InputSpec
from mint_compress.nn.io import Inputs


class PickledExporter:
    """For one input."""

    name, suffixes = "pickled", (".pickled",)

    def export(self, model: nn.Module, example_inputs: Inputs, path: Path, **_: Any) -> ExportResult:
        with path.open("wb") as file:
            torch.save(model, file)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        return ExportResult(path, {n: s for n, s in shapes.items() if len(s) > 1}, shapes, (path,))

    def open(self, path: Path, **_: Any) -> PickledSession:
        return PickledSession(path)


class PickledSession:
    """One pickled module."""

    provider = "PyTorch"

    def __init__(self, path: Path) -> None:
        self.module: nn.Module = torch.load(path, weights_only=False)
        shape = next(p for p in self.module.parameters() if p.ndim == 4).shape
        self.inputs = [InputSpec("x", (None, shape[1], None, None), "float32")]

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        with torch.no_grad():
            return [self.module(*map(torch.from_numpy, inputs)).numpy()]
