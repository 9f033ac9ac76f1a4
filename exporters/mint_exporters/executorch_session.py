"""Exported models in ExecuTorch, which computes on PyTorch's tensors."""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array, InputSpec
from mint_exporters.extras import require
from mint_exporters.messages import one_line
from mint_exporters.quiet import native_quiet, quiet

_log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu")
NAMES = "input_names"
"""The method of a file that says what its inputs are called, separated by commas."""
_DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
    11: "bool",
}  # fmt: skip
"""The numbers that PyTorch's types have in C++ -> what NumPy calls them."""
_open: weakref.WeakSet[ExecuTorchSession] = weakref.WeakSet()


class ExecuTorchSession:
    """A model in ExecuTorch on the CPU, with XNNPACK's kernels where the file says so."""

    def __init__(self, path: Path, *, device: str = "auto", threads: int = 1) -> None:
        require("ExecuTorch", "executorch", "executorch", "torch")
        if device not in DEVICES:
            raise MintError(f"ExecuTorch has no device '{device}'. Choose from: {', '.join(DEVICES)}.")
        if not path.is_file():
            raise MintError(f"No such file: '{path}'.")
        self._path = path
        with quiet(), native_quiet():
            try:
                from executorch.runtime import Runtime

                kept = _set_threads(threads)
                self._program = Runtime.get().load_program(path)
                self._method = self._program.load_method("forward")
                names = self._program.load_method(NAMES).execute([])[0]
                infos = [self._method.metadata.input_tensor_meta(i) for i in range(names.count(",") + 1)]
            except Exception as error:  # ExecuTorch's, which are all RuntimeError
                raise MintError(f"'{path}' is not a model ExecuTorch can open: {one_line(error)}") from error
        self._inputs = [_spec(name, info) for name, info in zip(names.split(","), infos, strict=True)]
        if kept is not None:
            _log.warning(
                "ExecuTorch has one pool of threads for all files: it stays at %s, %s were asked for",
                kept,
                threads,
            )
        _open.add(self)

    @property
    def provider(self) -> str:
        """ExecuTorch: a file says itself which kernels run it."""
        return "ExecuTorch CPU"

    @property
    def inputs(self) -> list[InputSpec]:
        """Name, shape (None: dynamic) and NumPy dtype of each input."""
        return [InputSpec(name, (None, *shape[1:]), dtype) for name, shape, dtype in self._inputs]

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        """Run one batch, in pieces where it is larger than the memory that the file has planned for.

        Raises
        ------
        MintError
            The number, shapes or dtypes of the inputs do not fit.
        """
        given = [(x.shape[1:], x.dtype.name) for x in inputs]
        if given != (wanted := [(shape[1:], dtype) for _, shape, dtype in self._inputs]):
            raise MintError(f"'{self._path}' takes inputs of {wanted}, batch first; {given} were given.")
        largest = self._inputs[0][1][0]
        pieces = [
            self._once([x[start : start + largest] for x in inputs])
            for start in range(0, len(inputs[0]), largest)
        ]
        return (
            pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        )

    def _once(self, inputs: list[Array]) -> list[Array]:
        import torch

        try:
            found = self._method.execute([torch.from_numpy(np.ascontiguousarray(x)) for x in inputs])
        except Exception as error:  # ExecuTorch's, which are all RuntimeError
            raise MintError(f"ExecuTorch cannot run '{self._path}': {one_line(error)}") from error
        return [x.numpy() for x in found if isinstance(x, torch.Tensor)]  # a number is given as one


def _spec(name: str, info: Any) -> tuple[str, tuple[int, ...], str]:
    """Name, largest shape, and NumPy's name of the type."""
    return name, tuple(info.sizes()), _DTYPES[info.dtype()]


def _set_threads(threads: int) -> int | None:
    """Set the pool of threads, of which there is one for all files; if some are open, how many it keeps."""
    from executorch.extension.pybindings import portable_lib

    wanted, now = threads or os.cpu_count() or 1, portable_lib._threadpool_get_thread_count()
    if wanted == now:
        return None
    if len(_open):  # they hold the pool that would go
        return int(now)
    portable_lib._unsafe_reset_threadpool(wanted)
    return None
