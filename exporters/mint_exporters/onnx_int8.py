"""ONNX files in eight bits: ONNX Runtime's static quantisation after training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mint_compress.errors import MintError, our_own
from mint_compress.exporting.session import Array
from mint_exporters.messages import one_line
from mint_exporters.quiet import quiet


def quantize(path: Path, output: Path, batches: Iterable[tuple[Array, ...]]) -> None:
    """Write a file whose weights and activations are 8-bit integers, between pairs of QDQ nodes.

    Weights are symmetric, with a scale per output channel; activations are unsigned, between the least and
    the greatest value that they take on the ``batches`` (Jacob et al., CVPR 2018). What goes between batches,
    inputs and outputs stays float, so that the file is used as the original is.

    Parameters
    ----------
    path
        An ``.onnx`` file in float.
    output
        Replaced.
    batches
        Real inputs, in the order of the file's.

    Raises
    ------
    MintError
        ONNX Runtime cannot quantise the file.
    """
    import onnx

    with tempfile.TemporaryDirectory(dir=output.parent) as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
            from onnxruntime.quantization.shape_inference import quant_pre_process

            # folds normalisation into the convolutions, whose scales would not fit otherwise
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            names = [x.name for x in onnx.load(str(prepared), load_external_data=False).graph.input]
            quantize_static(
                str(prepared), str(output), _Reader(names, batches),
                quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # ONNX Runtime's, which raises whatever its many passes raise
            raise MintError(f"ONNX Runtime cannot quantise '{path.name}': {one_line(error)}") from error


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, names: list[str], batches: Iterable[tuple[Array, ...]]) -> None:
        self.batches: Iterator[dict[str, Array]] = (
            dict(zip(names, map(np.ascontiguousarray, batch), strict=True)) for batch in batches
        )

    def get_next(self) -> dict[str, Array] | None:
        with our_own():  # what makes the batches is no fault of ONNX Runtime
            return next(self.batches, None)
