"""ONNX files in eight bits: ONNX Runtime's static quantisation after training."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array
from mint_exporters.messages import one_line
from mint_exporters.onnx_bias_correction import correct_biases
from mint_exporters.quiet import quiet

PERCENTILE = 99.99
"""Of the values of an activation: those beyond are clipped, for a few large ones make the steps coarse."""
ACTIVATIONS, AT_ONCE = 2**28, 8
"""Values of activations that are kept for their histograms (1 GiB), and how many samples go at a time."""


def quantize(path: Path, output: Path, batches: Iterable[tuple[Array, ...]]) -> None:
    """Write a file whose weights and activations are 8-bit integers, between pairs of QDQ nodes.

    Weights are symmetric, with a scale per output channel; activations are unsigned, within the percentile
    of the values that they take on the ``batches`` (Jacob et al., CVPR 2018); what the weights' rounding
    adds on average is taken out of the biases. What goes between batches, inputs and outputs stays float, so
    that the file is used as the original is.

    Parameters
    ----------
    path
        An ``.onnx`` file in float.
    output
        Replaced.
    batches
        Real inputs, in the order of the file's; as many are used as there is memory for.

    Raises
    ------
    MintError
        ONNX Runtime cannot quantise the file.
    """
    with tempfile.TemporaryDirectory(dir=output.parent) as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        names, values = _prepared(path, prepared)
        samples = list(_samples(names, batches, ACTIVATIONS // values))
        with _quantising(path):
            _quantize(prepared, output, samples)
        correct_biases(prepared, output, samples, Path(folder))


def _quantize(prepared: Path, output: Path, samples: Sequence[dict[str, Array]]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    def within(method: CalibrationMethod) -> None:
        quantize_static(
            str(prepared), str(output), _Reader(iter(samples)),
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=method, extra_options={"CalibPercentile": PERCENTILE},
        )  # fmt: skip

    try:
        within(CalibrationMethod.Percentile)
    except ValueError:  # NumPy's: of an activation that is all but zero there is no histogram
        within(CalibrationMethod.MinMax)


@contextlib.contextmanager
def _quantising(path: Path) -> Iterator[None]:
    """ONNX Runtime at work, which raises whatever its many passes raise."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's
        raise MintError(f"ONNX Runtime cannot quantise '{path.name}': {one_line(error)}") from error


def _prepared(path: Path, prepared: Path) -> tuple[list[str], int]:
    """Fold normalisation into the convolutions, whose scales would not fit otherwise.

    Returns the names of the inputs, and how many values of activations there are of one sample.
    """
    import onnx

    with _quantising(path):
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(prepared, load_external_data=False).graph
    shapes = [[d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in graph.value_info]
    return [x.name for x in graph.input], max(1, sum(map(math.prod, shapes)))


def _samples(names: list[str], batches: Iterable[tuple[Array, ...]], most: int) -> Iterator[dict[str, Array]]:
    """So many samples, by the names of the file's inputs, in batches of one size: histograms want that.

    Of fewer than that, one batch.
    """
    taken = 0
    for batch in batches:
        for start in range(0, len(batch[0]), AT_ONCE):
            part = [np.ascontiguousarray(x[start : start + AT_ONCE]) for x in batch]
            if taken and len(part[0]) < AT_ONCE:
                continue
            yield dict(zip(names, part, strict=True))
            taken += len(part[0])
            if len(part[0]) < AT_ONCE or taken >= most:
                return


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, samples: Iterator[dict[str, Any]]) -> None:
        self.samples = samples

    def get_next(self) -> dict[str, Any] | None:
        return next(self.samples, None)
