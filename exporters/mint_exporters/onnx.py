"""ONNX files, written by PyTorch's exporter."""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import mint_compress
from mint_compress.errors import CheckFailed, MintError, our_own
from mint_compress.exporting.protocol import IMAGES, ExportResult, on_cpu
from mint_compress.exporting.session import Array
from mint_compress.nn.io import Inputs, mapped, tensors
from mint_exporters.messages import of_pytorch, one_line
from mint_exporters.onnx_attention import FourDimensional
from mint_exporters.onnx_outputs import name_outputs_, output_names
from mint_exporters.onnx_session import CUDA, OnnxSession, runtime_version
from mint_exporters.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir

LARGEST_SINGLE_FILE = 1_900_000_000
"""Bytes of weights; protobuf cannot hold a message of 2 GiB."""


class OnnxExporter:
    """One ``.onnx`` file with a dynamic batch and nothing about the machine that wrote it."""

    name = "onnx"
    suffixes = (".onnx",)
    half_providers = (CUDA,)

    def export(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        metadata: dict[str, str] | None = None,
        dynamic_size: bool = False,
    ) -> ExportResult:
        """Write ``model`` to ``path``, checked, and replace what was there only when all is done.

        The file's inputs are called after the keys of a dict, or x0, x1 ... where there are several
        without names; a single one keeps the name it has in ``forward``. Its outputs are called as in the
        dict that the network returns, see :func:`mint_exporters.onnx_outputs.output_names`. With
        ``dynamic_size``, images may have any height and width.

        Weights above `LARGEST_SINGLE_FILE` go to ``NAME.onnx.data`` beside it; a note says so.

        Raises
        ------
        MintError
            PyTorch cannot export the model, or the file cannot be written.
        CheckFailed
            The ONNX checker refuses the file.
        """
        graph, traced = _trace(model, example_inputs, dynamic_size)
        _strip(graph)
        graph.metadata_props.update({key: str(value) for key, value in (metadata or {}).items()})
        try:
            files = _save(graph, Path(path))
        except OSError as error:
            raise MintError(f"Cannot write '{path}': {error.strerror or error}.") from error
        notes = tuple(f"The weights are in '{file.name}'; keep both files together." for file in files[1:])
        return ExportResult(Path(path), _stored_matrices(Path(path)), traced, files, notes)

    def open(self, path: Path, *, device: str = "auto", threads: int = 1) -> OnnxSession:
        """Open ``path`` in ONNX Runtime.

        Parameters
        ----------
        path
            The ``.onnx`` file.
        device
            "cpu", "cuda", or "auto": CUDA where it really loads, else the CPU.
        threads
            Threads within one operator; operators run one after the other. 0: every core.

        Raises
        ------
        MintError
            No such file, not an ONNX file, unknown device, or CUDA asked for and not loaded.
        """
        return OnnxSession(Path(path), device=device, threads=threads)

    @property
    def runtime(self) -> str:
        """Name and version of what opens the files."""
        return runtime_version()

    def write_layer(self, layer: nn.Module, shape: tuple[int, ...], path: Path) -> bool:
        """Write one layer without tracing it; see :func:`mint_exporters.onnx_layers.write_layer`."""
        from mint_exporters.onnx_layers import write_layer

        return write_layer(layer, shape, path)

    def quantize(self, path: Path, output: Path, batches: Iterable[tuple[Array, ...]]) -> None:
        """Write the file in eight bits; see :func:`mint_exporters.onnx_int8.quantize`."""
        from mint_exporters.onnx_int8 import quantize

        quantize(path, output, batches)

    def halve(self, path: Path, output: Path) -> None:
        """Write the file in half precision; see :func:`mint_exporters.onnx_fp16.halve`."""
        from mint_exporters.onnx_fp16 import halve

        halve(path, output)


def _trace(
    model: nn.Module, example_inputs: Inputs, dynamic_size: bool
) -> tuple[onnx_ir.Model, dict[str, tuple[int, ...]]]:
    """Trace ``model``, in eval mode and on the CPU, with the first dimension of every input dynamic.

    With ``dynamic_size``, height and width of images are as well. Returns the optimised trace, and name ->
    shape of its weights before the optimiser saw them.
    """
    # a batch of one may be taken for a constant while tracing
    given = mapped(example_inputs, lambda x: torch.cat([x, x]).cpu() if x.shape[0] == 1 else x.cpu())
    args, kwargs = ((), given) if isinstance(given, dict) else (tensors(given), {})
    names = [f"x{i}" for i in range(len(args))] if len(args) > 1 else None
    dynamic = torch.export.ShapesCollection()
    for x in tensors(given):
        size = {2: "height", 3: "width"} if dynamic_size and x.ndim == IMAGES else {}
        dynamic[x] = {0: "batch", **size}
    with on_cpu(model) as network, torch.no_grad(), quiet(), FourDimensional():
        with _exporting(model):
            program = torch.onnx.export(
                network,
                args,
                kwargs=kwargs,
                dynamo=True,
                verbose=False,
                input_names=names,
                dynamic_shapes=dynamic.dynamic_shapes(network, args, kwargs),
                external_data=False,
                optimize=False,
            )
        assert program is not None
        weights = _weights(program.model)
        with _exporting(model):
            _optimize_(program.model, {n for n, p in network.named_parameters() if p.ndim > 1})
        assert program.exported_program is not None
        name_outputs_(program.model, output_names(program.exported_program))
    return program.model, weights


@contextlib.contextmanager
def _exporting(model: nn.Module) -> Iterator[None]:
    """PyTorch's exporter and optimiser at work: they raise whatever their many passes raise."""
    try:
        yield
    except Exception as error:  # PyTorch's exporter and optimiser
        root = _root(error)
        raise MintError(
            f"PyTorch cannot export {type(model).__name__} to ONNX{_where(root)}: {_what_and_remedy(root)}"
        ) from error


def _weights(traced: onnx_ir.Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every initializer."""
    values = [value.const_value for value in traced.graph.initializers.values()]
    return {str(value.name): tuple(value.shape.numpy()) for value in values if value is not None}


def _optimize_(traced: onnx_ir.Model, weights: set[str]) -> None:
    """Fold constants, but no weight into something of another shape, such as a table that is looked up
    or a bias that a small network makes of fixed coordinates.

    ONNX Runtime folds those when it opens the file; in the file every weight can be found again.
    """
    from onnxscript import optimizer

    weights = set(weights)

    def should_fold(node: onnx_ir.Node) -> bool | None:
        with our_own():
            if not any(value is not None and value.name in weights for value in node.inputs):
                return None
            readers = {use.node.op_type for use in node.outputs[0].uses()}
            turned = node.op_type == "Transpose" and readers <= {"MatMul", "Gemm"}
            if turned:
                weights.add(str(node.outputs[0].name))
            return None if turned else False

    optimizer.optimize_ir(traced, should_fold=should_fold)


def _strip(traced: onnx_ir.Model) -> None:
    """Drop the exporter's annotations: they hold source paths and lines of code."""
    import onnx_ir

    traced.doc_string = None
    traced.metadata_props.clear()
    bodies: list[onnx_ir.Graph | onnx_ir.Function] = [traced.graph, *traced.functions.values()]
    graphs: list[Any] = [*bodies, *(graph for body in bodies for graph in body.subgraphs())]
    nodes = [node for body in bodies for node in onnx_ir.traversal.RecursiveGraphIterator(body)]
    values = [value for node in nodes for value in node.outputs]
    for graph in graphs:
        values.extend(graph.inputs)
        values.extend(getattr(graph, "initializers", {}).values())
    for annotated in (*graphs, *nodes, *values):
        annotated.metadata_props.clear()
        annotated.doc_string = None


def _save(traced: onnx_ir.Model, path: Path) -> tuple[Path, ...]:
    """Write into a folder beside ``path``, check there, move; return the files, the model first."""
    import onnx
    import onnx_ir

    weights = [value.const_value for value in traced.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    # the model refers to its data file by name, so the names are final and only the folder is not
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        data = f"{path.name}.data" if size > LARGEST_SINGLE_FILE else None
        onnx_ir.save(traced, draft, external_data=data)
        try:
            onnx.checker.check_model(str(draft))
        except onnx.checker.ValidationError as error:
            raise CheckFailed(f"The ONNX checker refuses '{path.name}': {one_line(error)}") from error
        names = (data, path.name) if data else (path.name,)
        for name in names:
            os.replace(Path(folder) / name, path.parent / name)
    return tuple(path.parent / name for name in reversed(names))


def _stored_matrices(path: Path) -> dict[str, tuple[int, ...]]:
    """Initializers and Constant nodes of two or more dimensions, as they are on disk: name -> shape."""
    import onnx

    stored: dict[str, tuple[int, ...]] = {}

    def collect(graph: onnx.GraphProto) -> None:
        stored.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    collect(attribute.g)
                elif node.op_type == "Constant" and attribute.name == "value":
                    stored[node.output[0]] = tuple(attribute.t.dims)

    collect(onnx.load(str(path), load_external_data=False).graph)
    return {name: shape for name, shape in stored.items() if len(shape) >= 2}


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


def _what_and_remedy(error: BaseException) -> str:
    """What is wrong, and what can be done about it."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, GuardOnDataDependentSymNode):
        what = "its forward pass depends on values that it computes, as in an 'if'"
        return f"{what}. Write that with torch.where or torch.cond, or take it out."
    return f"{of_pytorch(error)}. Change that part of the forward pass."


def _where(error: BaseException) -> str:
    """The innermost line of the user's own code, not of a package's; nothing where none is."""
    packages = {Path(package.__path__[0]) for package in (torch, mint_compress)} | {Path(__file__).parent}
    folders = packages | {Path(contextlib.__file__).parent}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = {"site-packages", "dist-packages"} & {*path.parts} or folders & {*path.parents}
        if path.exists() and not installed:
            return f" ({path.name}, line {frame.lineno})"
    return ""
