"""ONNX files in half precision, by the converter that comes with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from mint_compress.errors import MintError
from mint_exporters.messages import one_line
from mint_exporters.quiet import quiet


def halve(path: Path, output: Path) -> None:
    """Write a file whose weights and activations are float16; inputs and outputs stay as they are.

    Weights beyond the range of float16 become its ends; operators that it is too coarse for stay in float.

    Parameters
    ----------
    path
        An ``.onnx`` file in float.
    output
        Replaced.

    Raises
    ------
    MintError
        The file cannot be converted.
    """
    import onnx

    with quiet():
        try:
            from onnxruntime.transformers.float16 import convert_float_to_float16

            network = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
        except Exception as error:  # ONNX Runtime's, which raises whatever its many passes raise
            raise MintError(f"ONNX Runtime cannot halve '{path.name}': {one_line(error)}") from error
    onnx.save(network, str(output))
