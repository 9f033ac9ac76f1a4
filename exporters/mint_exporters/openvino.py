"""OpenVINO's files, an .xml with its weights in a .bin beside it, made by OpenVINO from our ONNX export."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import ExportResult
from mint_compress.exporting.session import Array
from mint_compress.files import parts_of
from mint_compress.nn.io import Inputs
from mint_exporters.extras import require
from mint_exporters.messages import one_line
from mint_exporters.onnx import OnnxExporter
from mint_exporters.onnx_layers import write_layer
from mint_exporters.openvino_session import OpenVinoSession, core, runtime

GROUPED = ("GroupConvolution", "GroupConvolutionBackpropData")


class OpenVinoExporter:
    """An ``.xml`` and a ``.bin`` in float32 with a dynamic batch.

    OpenVINO reads the ONNX export: names, outputs and the shapes that may vary are those of an ``.onnx``, and
    what PyTorch's exporter has to be helped with is helped with once.
    """

    name = "openvino"
    suffixes = (".xml",)

    def require(self, *, int8: bool = False) -> None:
        """Refuse to begin without OpenVINO, or, for ``int8``, without NNCF.

        Raises
        ------
        MintError
            Naming the extra.
        """
        require("OpenVINO", "openvino", "openvino", *(("nncf",) if int8 else ()))

    def export(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        metadata: dict[str, str] | None = None,
        dynamic_size: bool = False,
    ) -> ExportResult:
        """Write ``model`` to ``path`` and its weights beside it, and replace what was there when all is done.

        Raises
        ------
        MintError
            PyTorch or OpenVINO cannot convert the model, or the files cannot be written.
        """
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.with_suffix(".onnx").name
            made = OnnxExporter().export(model, example_inputs, draft, dynamic_size=dynamic_size)
            network = _read(draft)
            for key, value in (metadata or {}).items():
                network.set_rt_info(str(value), ["mint_compress", key])
            files = _save(network, path)
        note = f"The weights are in '{files[1].name}'; keep both files together."
        return ExportResult(path, _stored_matrices(path), made.traced, files, (note,))

    def open(self, path: Path, *, device: str = "auto", threads: int = 1) -> OpenVinoSession:
        """Open ``path`` in OpenVINO on "auto" or "cpu", which are the same; threads 0: every core.

        Raises
        ------
        MintError
            No such file, not a file of OpenVINO's, or another device.
        """
        return OpenVinoSession(Path(path), device=device, threads=threads)

    @property
    def runtime(self) -> str:
        """Name and version of what opens the files."""
        return f"openvino {version('openvino')}"

    def write_layer(self, layer: nn.Module, shape: tuple[int, ...], path: Path) -> bool:
        """Write one layer without tracing it; see :func:`mint_exporters.onnx_layers.write_layer`."""
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "layer.onnx"
            if written := write_layer(layer, shape, draft):
                _save(_read(draft), path)
        return written

    def quantize(self, path: Path, output: Path, batches: Iterable[tuple[Array, ...]]) -> None:
        """Write the file in eight bits; see :func:`mint_exporters.openvino_int8.quantized`."""
        from mint_exporters.openvino_int8 import quantized

        _save(quantized(_read(path), batches), output)


def _read(path: Path) -> Any:
    try:
        return core().read_model(str(path))
    except Exception as error:  # OpenVINO's, which are all RuntimeError
        raise MintError(f"OpenVINO cannot read '{path.name}': {one_line(error)}") from error


def _save(network: Any, path: Path) -> tuple[Path, ...]:
    """Write both files into a folder beside ``path``, then move them; return them, the model first.

    Nothing is folded: ``save_model`` would make tables and biases of weights, where nobody could count them.
    OpenVINO does so when it opens the file.
    """
    files = parts_of(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        drafts = [Path(folder) / file.name for file in files]
        try:
            runtime().serialize(network, *map(str, drafts))
        except Exception as error:  # OpenVINO's, which are all RuntimeError
            raise MintError(f"OpenVINO cannot write '{path}': {one_line(error)}") from error
        for draft, file in reversed(list(zip(drafts, files, strict=True))):
            os.replace(draft, file)
    return files


def _stored_matrices(path: Path) -> dict[str, tuple[int, ...]]:
    """Constants of two or more dimensions, as they are on disk: name -> shape."""
    stored: Mapping[str, tuple[int, ...]] = {
        node.get_friendly_name(): _shape(node)
        for node in _read(path).get_ops()
        if node.get_type_name() == "Constant"
    }
    return {name: shape for name, shape in stored.items() if len(shape) >= 2}


def _shape(constant: Any) -> tuple[int, ...]:
    """As in PyTorch: here the groups of a kernel are a dimension of their own."""
    shape = tuple(int(size) for size in constant.get_output_shape(0))
    uses = constant.output(0).get_target_inputs()
    grouped = any(use.get_node().get_type_name() in GROUPED and use.get_index() == 1 for use in uses)
    return (shape[0] * shape[1], *shape[2:]) if grouped else shape
