"""ExecuTorch's files, for phones and small machines: lowered to XNNPACK's kernels."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import ExportResult, on_cpu
from mint_compress.nn.io import Inputs, mapped, tensors
from mint_exporters.executorch_session import NAMES, ExecuTorchSession
from mint_exporters.extras import require
from mint_exporters.messages import of_pytorch
from mint_exporters.quiet import native_quiet, quiet

LARGEST_BATCH = 8
"""A file plans its memory for the largest batch; a phone is not to keep room for more."""
PADDING = 16
"""Bytes that a weight in a file may be longer than its elements."""
METADATA = "mint_compress"

Shapes = dict[str, tuple[int, ...]]


class ExecuTorchExporter:
    """A ``.pte`` file in float32 for batches of up to `LARGEST_BATCH`; larger ones are run in pieces."""

    name = "executorch"
    suffixes = (".pte",)

    def require(self, *, int8: bool = False) -> None:
        """Refuse to begin without ExecuTorch.

        Raises
        ------
        MintError
            Naming the extra.
        """
        require("ExecuTorch", "executorch", "executorch")

    def export(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        metadata: dict[str, str] | None = None,
        dynamic_size: bool = False,
    ) -> ExportResult:
        """Write ``model`` to ``path``, open it, and replace what was there when all is done.

        Raises
        ------
        MintError
            ExecuTorch cannot take the model or run the file, or other sizes of images are asked for.
        """
        if dynamic_size:
            raise MintError(
                "ExecuTorch plans memory for one size of images. Leave out --dynamic-size, or write .onnx."
            )
        with on_cpu(model) as network, torch.no_grad(), quiet(), native_quiet():
            program = _traced(network, example_inputs)
            lowered, content = _lowered(program, metadata or {}, of=type(model).__name__)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            draft.write_bytes(content)
            self.open(draft)  # an operator that the runtime lacks is missed only here
            os.replace(draft, path)
        return ExportResult(path, _stored_matrices(lowered, path), _weights(program), (path,))

    @property
    def runtime(self) -> str:
        """Name and version of what opens the files."""
        return f"executorch {version('executorch')}"

    def open(self, path: Path, *, device: str = "auto", threads: int = 1) -> ExecuTorchSession:
        """Open ``path`` in ExecuTorch on "auto" or "cpu", which are the same; threads 0: every core.

        Raises
        ------
        MintError
            No such file, not a file of ours for ExecuTorch, or another device.
        """
        return ExecuTorchSession(Path(path), device=device, threads=threads)


def _traced(network: nn.Module, example_inputs: Inputs) -> torch.export.ExportedProgram:
    # a batch of one may be taken for a constant while tracing
    given = mapped(example_inputs, lambda x: torch.cat([x, x]).cpu() if x.shape[0] == 1 else x.cpu())
    args, kwargs = ((), given) if isinstance(given, dict) else (tensors(given), {})
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    dynamic = torch.export.ShapesCollection()
    for x in tensors(given):
        dynamic[x] = {0: batch}
    shapes = dynamic.dynamic_shapes(network, args, kwargs)
    with _taking(type(network).__name__):
        return torch.export.export(network, args, kwargs, dynamic_shapes=shapes)


@contextlib.contextmanager
def _taking(name: str) -> Iterator[None]:
    """PyTorch's exporter and ExecuTorch's many passes at work."""
    try:
        yield
    except Exception as error:  # PyTorch's and ExecuTorch's
        raise MintError(
            f"ExecuTorch cannot take {name}: {of_pytorch(error)}. "
            "Change that part of the forward pass, or export to .onnx."
        ) from error


def _lowered(
    program: torch.export.ExportedProgram, metadata: dict[str, str], *, of: str
) -> tuple[Any, bytes]:
    """The program as XNNPACK's kernels run it, and the file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    names = ",".join(str(name) for name in program.graph_signature.user_inputs)
    # NNPACK takes batches below 16 alone, and PyTorch would note that down as a bound of the program
    with torch.backends.nnpack.flags(enabled=False), _taking(of):
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            constant_methods={NAMES: names, METADATA: json.dumps(metadata)},
        )
        return edge.exported_program(), bytes(edge.to_executorch().buffer)


def _weights(program: torch.export.ExportedProgram) -> Shapes:
    """Name -> shape of every weight that something reads."""
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    return {
        str(spec.target): tuple(program.state_dict[str(spec.target)].shape)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        and spec.arg.name in read
        and str(spec.target) in program.state_dict
    }


def _stored_matrices(lowered: Any, path: Path) -> Shapes:
    """Weights of two or more dimensions that the file holds.

    It knows them by numbers and hashes: names and shapes are those of the lowered program, and each is there
    if the file has as many elements for it.
    """
    modules = [getattr(lowered.graph_module, n.target) for n in lowered.graph.nodes if n.op == "get_attr"]
    programs = [lowered, *(m.original_module for m in modules if hasattr(m, "original_module"))]
    lengths = _lengths(path)
    found: Shapes = {}
    for program in programs:
        for name, tensor in program.state_dict.items():
            size = tensor.numel() * tensor.element_size()
            there = min((n for n in lengths.elements() if size <= n < size + PADDING), default=None)
            if tensor.ndim >= 2 and there is not None:
                found[name] = tuple(tensor.shape)
                lengths[there] -= 1
    return found


def _lengths(path: Path) -> Counter[int]:
    """Bytes of each constant in a file -> how many there are of that length."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(path.read_bytes())
    named = file.named_data.buffers if file.named_data is not None else []
    return Counter(
        [
            *(len(getattr(x, "buffer", x)) for x in named),
            *(len(x.storage) for x in file.program.constant_buffer),
        ]
    )
