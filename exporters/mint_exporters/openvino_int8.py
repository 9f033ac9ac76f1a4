"""OpenVINO's files in eight bits: NNCF's quantisation after training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mint_compress.errors import MintError, our_own
from mint_compress.exporting.session import Array
from mint_exporters.messages import one_line
from mint_exporters.quiet import quiet


def quantized(network: Any, batches: Iterable[tuple[Array, ...]]) -> Any:
    """The network with 8-bit integers for weights, with a scale per output channel, and for activations.

    Activations lie between values that they take on the ``batches``; biases are corrected by what rounding
    the weights adds to a layer's mean output there. Where there is attention, NNCF leaves in float what
    transformers cannot do without.

    Parameters
    ----------
    network
        An ``openvino.Model`` in float.
    batches
        Real inputs, in the order of the network's.

    Raises
    ------
    MintError
        NNCF cannot quantise the network.
    """
    given = list(batches)
    with quiet():
        try:
            import nncf

            with our_own():
                names = [item.get_any_name() for item in network.inputs]
            kind = nncf.ModelType.TRANSFORMER if _attends(network) else None
            return nncf.quantize(
                network,
                nncf.Dataset(given, lambda batch: dict(zip(names, batch, strict=True))),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(given),
                model_type=kind,
            )
        except Exception as error:  # NNCF's and OpenVINO's, which share no base class
            raise MintError(f"NNCF cannot quantise the network: {one_line(error)}") from error


def _attends(network: Any) -> bool:
    """Whether activations are multiplied by activations."""
    products = [node for node in network.get_ops() if node.get_type_name() == "MatMul"]
    return any(
        all(node.input_value(place).get_node().get_type_name() != "Constant" for place in (0, 1))
        for node in products
    )
