"""What rounding weights to eight bits adds to a layer's outputs on average, taken out of its bias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mint_compress.exporting.session import Array

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float64]


def correct_biases(prepared: Path, quantised: Path, batches: Iterable[dict[str, Array]], folder: Path) -> int:
    """Shift the biases of a quantised file, in place, so that layers give on average what they gave in float.

    A weight that is rounded is off by the same for all inputs, so a layer is off by the sum of that times the
    mean of each of its input channels (Nagel et al., "Data-Free Quantization Through Weight Equalization and
    Bias Correction", ICCV 2019, section 4.2, with means of real inputs).

    Parameters
    ----------
    prepared
        The file in float of which the other was made.
    quantised
        With pairs of QDQ nodes, and biases of 32 bits.
    batches
        Real inputs by name.
    folder
        For a file in between.

    Returns
    -------
    int
        How many layers were corrected: convolutions and matrix products with a bias.
    """
    import onnx
    from onnx.numpy_helper import from_array

    layers = list(_layers(onnx.load(prepared), quantised_file := onnx.load(quantised)))
    if not layers:
        return 0
    means = _input_means(prepared, layers, batches, folder / "means.onnx")
    for layer in layers:
        steps, held = _array(layer.bias_scale).astype(np.float64), _array(layer.bias)
        shift = layer.shift(means[layer.reads])
        # a step of a layer whose inputs vanish may be zero, or so small that the bias is at its limit
        whole = np.round(np.divide(shift, steps, out=np.zeros_like(shift), where=steps > 0))
        limits = np.iinfo(held.dtype)
        corrected = np.clip(held - whole, limits.min, limits.max).astype(held.dtype)
        layer.bias.CopyFrom(from_array(corrected, layer.bias.name))
    onnx.save(quantised_file, quantised)
    return len(layers)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the quantised file, and by how much its weights are off.

    Attributes
    ----------
    reads
        The tensor that it reads, in the file in float.
    error
        ``(C_out, C_in / groups)``: summed over the kernel.
    groups
        Channel groups.
    dims
        Of its input.
    bias, bias_scale
        Of the quantised file.
    """

    reads: str
    error: Floats
    groups: int
    dims: int
    bias: onnx.TensorProto
    bias_scale: onnx.TensorProto

    def shift(self, means: Floats) -> Floats:
        """``(C_out,)``: what it gives too much, where its input channels have these means."""
        outputs = len(self.error) // self.groups
        by_group = means.reshape(self.groups, -1).repeat(outputs, axis=0)
        return np.asarray((self.error * by_group).sum(1))


def _layers(prepared: onnx.ModelProto, quantised: onnx.ModelProto) -> Iterator[_Layer]:
    weights = {t.name: t for t in prepared.graph.initializer}
    kept = {t.name: t for t in quantised.graph.initializer}
    restored = {n.output[0]: n for n in quantised.graph.node if n.op_type == "DequantizeLinear"}
    same = {n.name: n for n in quantised.graph.node}
    for node in prepared.graph.node:
        other = same.get(node.name)
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in weights or other is None:
            continue
        pair = [restored.get(name) for name in other.input[1:3]]
        if len(pair) < 2 or any(one is None or one.input[0] not in kept for one in pair):
            continue  # left in float, or without a bias
        weight, bias = pair
        assert weight is not None and bias is not None
        error = _restored(weight, kept) - _array(weights[node.input[1]]).astype(np.float64)
        if node.op_type == "Gemm" and not _attribute(node, "transB", 0):
            error = error.T
        yield _Layer(
            node.input[0], error.reshape(*error.shape[:2], -1).sum(2), _attribute(node, "group", 1),
            error.ndim, kept[bias.input[0]], kept[bias.input[1]],
        )  # fmt: skip


def _restored(node: onnx.NodeProto, kept: dict[str, onnx.TensorProto]) -> Floats:
    """The weight that the integers stand for; its zero point is 0."""
    integers, steps = (_array(kept[name]).astype(np.float64) for name in node.input[:2])
    if not steps.ndim:
        return np.asarray(integers * steps)
    shape = [1] * integers.ndim
    shape[_attribute(node, "axis", 1)] = -1
    return np.asarray(integers * steps.reshape(shape))


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    from onnx.numpy_helper import to_array

    return np.asarray(to_array(tensor))


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _input_means(
    prepared: Path, layers: list[_Layer], batches: Iterable[dict[str, Array]], path: Path
) -> dict[str, Floats]:
    """Tensor -> ``(C,)``: the mean of each of its channels, computed in the graph itself."""
    import onnx
    import onnxruntime
    from onnx.numpy_helper import from_array

    model = onnx.load(prepared)
    dims = {layer.reads: layer.dims for layer in layers}
    names = {tensor: f"mean_of_{i}" for i, tensor in enumerate(dims)}
    for tensor, name in names.items():
        axes = np.array([0, *range(2, dims[tensor])], dtype=np.int64)
        model.graph.initializer.append(from_array(axes, f"{name}_axes"))
        model.graph.node.append(
            onnx.helper.make_node("ReduceMean", [tensor, f"{name}_axes"], [name], keepdims=0)
        )
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names.values()
    )
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    total, count = dict.fromkeys(names, np.zeros(())), 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        found: list[Any] = session.run(list(names.values()), batch)
        total = {
            name: total[name] + size * mean.astype(np.float64)
            for name, mean in zip(names, found, strict=True)
        }
        count += size
    return {name: values / count for name, values in total.items()}
