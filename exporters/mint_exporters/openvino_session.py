"""Exported models in OpenVINO."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, cast

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array, InputSpec
from mint_compress.files import parts_of
from mint_exporters.extras import require
from mint_exporters.messages import one_line

DEVICES = ("auto", "cpu")
DEVICE = "CPU"
"""What OpenVINO calls it."""


class OpenVinoSession:
    """A model in OpenVINO on the CPU, in float32 where its weights are: no rounding to bfloat16."""

    def __init__(self, path: Path, *, device: str = "auto", threads: int = 1) -> None:
        require("OpenVINO", "openvino", "openvino")
        if device not in DEVICES:
            raise MintError(f"OpenVINO has no device '{device}'. Choose from: {', '.join(DEVICES)}.")
        for part in parts_of(path):
            if not part.is_file():
                raise MintError(f"No such file: '{part}'.")
        self._path = path
        try:
            # a processor with AMX would compute in bfloat16 unasked: too coarse for parity with the original
            asked: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            # and a thread that is bound to one core waits for whoever else computes there
            asked |= {
                "ENABLE_CPU_PINNING": False,
                "NUM_STREAMS": 1,
                **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
            }
            self._model = core().compile_model(str(path), DEVICE, asked)
            self._request = self._model.create_infer_request()
        except Exception as error:  # OpenVINO's, which are all RuntimeError
            raise MintError(f"'{path}' is not a model OpenVINO can open: {one_line(error)}") from error
        self._dtypes = [spec.dtype for spec in self.inputs]

    @property
    def provider(self) -> str:
        """OpenVINO, and the device that it really computes on."""
        return f"OpenVINO {', '.join(self._model.get_property('EXECUTION_DEVICES'))}"

    @property
    def inputs(self) -> list[InputSpec]:
        """Name, shape (None: dynamic) and NumPy dtype of each input."""
        return [
            InputSpec(
                item.get_any_name(),
                tuple(
                    None if size.is_dynamic else int(size.get_length()) for size in item.get_partial_shape()
                ),
                item.get_element_type().to_dtype().name,
            )
            for item in self._model.inputs
        ]

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        """Run one batch; raise MintError where the number, shapes or dtypes of the inputs do not fit."""
        if len(inputs) != len(self._dtypes):
            raise MintError(f"'{self._path}' takes {len(self._dtypes)} inputs, {len(inputs)} were given.")
        if (given := [str(x.dtype) for x in inputs]) != self._dtypes:  # OpenVINO would change them unasked
            raise MintError(f"'{self._path}' takes {', '.join(self._dtypes)}; {', '.join(given)} were given.")
        try:
            found = self._request.infer(list(inputs), share_inputs=True)
        except Exception as error:  # OpenVINO's, which are all RuntimeError
            raise MintError(f"OpenVINO cannot run '{self._path}': {one_line(error)}") from error
        return [found[i] for i in range(len(self._model.outputs))]


def runtime() -> Any:
    """OpenVINO's module.

    Its packages report their use to their makers unless the user objects. What works on other people's
    networks has no business to: the package that sends is hidden from them.
    """
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino


@cache
def core() -> Any:
    """The one ``Core`` of the process.

    On processors with AMX its plug-in gives the thread another stack for signals, and puts back the one
    before when the core is gone. Of two cores at a time the second would put back what the first has
    unmapped: whatever signal comes then ends the process, be it Ctrl+C or the end of a child. So ours is
    never gone, and the plug-in is loaded at once, before that of anybody else's core.
    """
    core = runtime().Core()
    core.get_property(DEVICE, "FULL_DEVICE_NAME")
    return core
