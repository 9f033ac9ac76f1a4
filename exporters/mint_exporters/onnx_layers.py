"""One layer as an ONNX file, written without tracing, for which timing many widths has no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OPSET = 18


def write_layer(layer: nn.Module, shape: tuple[int, ...], path: Path) -> bool:
    """Write a convolution or a linear layer that takes inputs of ``shape``; False for any other layer.

    A convolution whose padding is not zeros, or not a number, is another layer.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return False
        nodes = [_convolution(layer)]
    elif isinstance(layer, nn.Linear):
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["product" if layer.bias is not None else "y"])]
        if layer.bias is not None:
            nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    else:
        return False
    weight = layer.weight.detach().cpu().numpy()
    held = {"weight": np.ascontiguousarray(weight.T) if isinstance(layer, nn.Linear) else weight}
    if layer.bias is not None:
        held["bias"] = layer.bias.detach().cpu().numpy()
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32, copy=False), name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(model, str(path))
    return True


def _convolution(layer: Any) -> Any:
    from onnx import helper

    said = {
        "kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation,
        "group": layer.groups, "pads": (*layer.padding, *layer.padding),
    }  # fmt: skip
    kind = "Conv"
    if isinstance(layer, TRANSPOSED):
        kind, said = "ConvTranspose", {**said, "output_padding": layer.output_padding}
    given = ["x", "weight", *(["bias"] if layer.bias is not None else [])]
    return helper.make_node(kind, given, ["y"], **said)
