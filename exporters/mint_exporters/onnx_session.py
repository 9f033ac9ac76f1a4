"""Exported models in ONNX Runtime, whichever of its two packages is installed."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array, InputSpec
from mint_exporters.messages import one_line

_log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
DEVICES = ("auto", "cpu", "cuda")
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
"""Two distributions of the same module: the first for the CPU alone, the second for CUDA as well."""
ONE_OF_THEM = "one of them: onnxruntime-gpu, or onnxruntime for the CPU alone"
NUMPY_NAMES = {"float": "float32", "double": "float64"}


class OnnxSession:
    """A model in ONNX Runtime, on CUDA or the CPU (TensorRT is never asked for)."""

    def __init__(self, path: Path, *, device: str = "auto", threads: int = 1) -> None:
        if device not in DEVICES:
            raise MintError(f"Unknown device '{device}'. Choose from: {', '.join(DEVICES)}.")
        if not path.is_file():
            raise MintError(f"No such file: '{path}'.")
        self._path = path
        self._session = _inference_session(path, device, threads)
        self._names = [item.name for item in self._session.get_inputs()]

    @property
    def provider(self) -> str:
        """The provider ONNX Runtime really loaded, not the one it was asked for."""
        return str(self._session.get_providers()[0])

    @property
    def inputs(self) -> list[InputSpec]:
        """Name, shape (None: dynamic) and NumPy dtype of each input."""
        return [
            InputSpec(
                item.name,
                tuple(size if isinstance(size, int) else None for size in item.shape),
                _numpy_name(item.type),
            )
            for item in self._session.get_inputs()
        ]

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        """Run one batch; raise MintError where the number, shapes or dtypes of the inputs do not fit."""
        if len(inputs) != len(self._names):
            raise MintError(f"'{self._path}' takes {len(self._names)} inputs, {len(inputs)} were given.")
        try:
            outputs: list[Array] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise MintError(f"ONNX Runtime cannot run '{self._path}': {one_line(error)}") from error
        return outputs


def _inference_session(path: Path, device: str, threads: int) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = runtime.InferenceSession(str(path), options, providers=_providers(runtime, device))
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise MintError(f"'{path}' is not a model ONNX Runtime can open: {one_line(error)}") from error
    loaded = session.get_providers()
    if device == "cuda" and CUDA not in loaded:
        raise MintError(
            f"CUDA was asked for, but ONNX Runtime loaded {', '.join(loaded)}. {_way_to_cuda()}, or ask for "
            "the CPU."
        )
    return session


def runtime_version() -> str:
    """``onnxruntime-gpu 1.23.0``: the package that is installed, and its version."""
    return ", ".join(f"{package} {number}" for package, number in _installed().items())


def _runtime() -> Any:
    """ONNX Runtime's module, quiet."""
    try:
        import onnxruntime
    except ImportError as error:
        said = one_line(error)
        raise MintError(f"ONNX Runtime cannot be imported ({said}). Install {ONE_OF_THEM}.") from error
    _warn_of_two_packages()
    if not hasattr(onnxruntime, "InferenceSession"):  # a folder without its files is a module, too
        raise MintError(
            "ONNX Runtime's files are incomplete, as they are once one of its two packages was removed "
            f"beside the other. Uninstall both and install {ONE_OF_THEM}."
        )
    onnxruntime.set_default_logger_severity(4)  # a provider that does not load writes in red
    return onnxruntime


def _providers(runtime: Any, device: str) -> list[Any]:
    if device == "cpu" or CUDA not in runtime.get_available_providers():
        return [CPU]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot load
        runtime.preload_dlls()
    # TF32 keeps ten bits of the mantissa: too coarse for parity with the original
    return [(CUDA, {"use_tf32": "0"}), CPU]


def _way_to_cuda() -> str:
    install = "nstall onnxruntime-gpu[cuda,cudnn] and an NVIDIA driver"
    if list(_installed()) == ["onnxruntime"]:
        return f"The package onnxruntime computes on the CPU alone: uninstall it, then i{install}"
    return f"I{install}"


def _installed() -> dict[str, str]:
    """Which of the two packages there are -> their versions."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@functools.cache
def _warn_of_two_packages() -> None:
    found = [f"{package} {number}" for package, number in _installed().items()]
    if len(found) == 2:
        _log.warning(
            "%s are both installed and overwrite each other's files. Uninstall both, then install one.",
            " and ".join(found),
        )


def _numpy_name(kind: str) -> str:
    element = kind.removeprefix("tensor(").removesuffix(")")
    return NUMPY_NAMES.get(element, element)
