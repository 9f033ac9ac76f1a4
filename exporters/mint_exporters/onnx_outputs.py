"""What the outputs of a trace are called: as in the dict that the network returns, or by their place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.utils import _pytree

if TYPE_CHECKING:
    import onnx_ir

ALONE = "output"


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """A name for each tensor that the program returns, in its order.

    A tensor alone is ``output``. In a dict it is called by its key, in a named tuple by its field, in a
    list ``output_0``, ``output_1``; in one within another by all of these, joined by ``_``.
    """
    spec = program.call_spec.out_spec
    assert spec is not None
    places = list(range(spec.num_leaves))
    names = dict(_named(_pytree.tree_unflatten(places, spec), ""))
    returned = [s for s in program.graph_signature.output_specs if s.kind == OutputKind.USER_OUTPUT]
    # numbers and None are left out of the graph
    return [
        names.get(i, f"{ALONE}_{i}")
        for i, s in enumerate(returned)
        if not isinstance(s.arg, ConstantArgument)
    ]


def _named(output: Any, name: str) -> Iterator[tuple[int, str]]:
    """Place of each leaf, and what it is called."""
    if isinstance(output, int):
        yield output, name or ALONE
    elif isinstance(output, Mapping):
        for key, value in output.items():
            # numbers as keys say no more than a place in a list
            own = name or ("" if isinstance(key, str) else ALONE)
            yield from _named(value, f"{own}_{key}" if own else str(key))
    elif isinstance(output, list | tuple):
        fields = getattr(output, "_fields", None)
        for key, value in enumerate(output) if fields is None else zip(fields, output, strict=True):
            own = name or (ALONE if fields is None else "")
            yield from _named(value, f"{own}_{key}" if own else str(key))


def name_outputs_(traced: onnx_ir.Model, names: list[str]) -> None:
    """Call the outputs of a trace so; what has such a name inside of it gets another one.

    An output that is an input or a weight itself keeps the name of that, and one that is there twice has
    the first of its names.
    """
    import onnx_ir

    graph = traced.graph
    fixed = {*graph.inputs, *graph.initializers.values()}
    kept = {str(value.name) for value in fixed}
    wanted: dict[onnx_ir.Value, str] = {}
    for value, name in zip(graph.outputs, names, strict=True):
        if value not in fixed and value not in wanted:
            wanted[value] = _unused(name, {*kept, *wanted.values()})
    taken = {*kept, *wanted.values()}
    nodes = onnx_ir.traversal.RecursiveGraphIterator(graph)
    inner = [value for node in nodes for value in node.outputs if value not in wanted]
    taken |= {str(value.name) for value in inner}
    for value in inner:
        if value.name in wanted.values():
            value.name = _unused(str(value.name), taken)
            taken.add(value.name)
    for value, name in wanted.items():
        value.name = name


def _unused(name: str, taken: Collection[str]) -> str:
    """``name``, or with as many lines below it as it takes."""
    while not name or name in taken:
        name += "_"
    return name
