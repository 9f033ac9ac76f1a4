"""Deployable files: what an exporter and its runtime must offer, and how they are found.

The core knows exporters by this protocol only. They are entry points of the group
``mint_compress.exporters``; the suffix of the output picks one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array, Session
from mint_compress.files import writing
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.copying import copied
from mint_compress.nn.io import Inputs, tensors

_log = logging.getLogger(__name__)

ENTRY_POINTS = "mint_compress.exporters"
IMAGES = 4
"""Dimensions of a batch of images."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes
    ----------
    path
        The model file.
    tensors
        Name -> shape of the tensors of two or more dimensions stored in the file, read back from it.
    traced
        Name -> shape of every weight in the trace that became the file, before anything was folded.
    files
        Every file written, ``path`` among them.
    notes
        What a user should know, a sentence each: that the weights are in a second file, say.
    """

    path: Path
    tensors: dict[str, tuple[int, ...]]
    traced: dict[str, tuple[int, ...]]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class Exporter(Protocol):
    """Writes one kind of file and opens it again."""

    @property
    def name(self) -> str:
        """Short name, as in the entry point."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the files it writes, with the dot."""

    def export(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        path: Path,
        *,
        metadata: dict[str, str] | None = None,
        dynamic_size: bool = False,
    ) -> ExportResult:
        """Write ``model`` to ``path``, batch first and of any size.

        With ``dynamic_size``, which is given only where it is asked for, images (n, C, H, W) may have any
        height and width as well. The inputs of the file have the names of a dict's keys, or else the order of
        the tuple.
        """

    def open(self, path: Path, *, device: str = "auto", threads: int = 1) -> Session:
        """Open a file for running on "auto", "cpu" or "cuda"."""


@runtime_checkable
class NeedsPackages(Protocol):
    """An exporter whose runtime is an extra, and may not be installed."""

    def require(self, *, int8: bool = False) -> None:
        """Raise MintError, naming the extra, where a package is missing that it needs."""


def find_exporter(path: str | Path) -> Exporter:
    """Return the installed exporter whose suffix ``path`` has.

    Raises
    ------
    MintError
        No exporter is installed, none has this suffix (the message names the suffixes there are), or its
        runtime is not installed.
    """
    path = Path(path)
    exporters = _installed()
    for exporter in exporters:
        if path.name.lower().endswith(tuple(exporter.suffixes)):
            if isinstance(exporter, NeedsPackages):
                exporter.require()
            return exporter
    wanted = path.suffix.removeprefix(".") or "onnx"
    if not exporters:
        raise MintError(f"No exporter '{wanted}'. Found: none. Running from a checkout? pip install -e .")
    known = ", ".join(sorted(suffix for exporter in exporters for suffix in exporter.suffixes))
    raise MintError(f"No exporter writes '{path.name}'. Choose a suffix from: {known}.")


def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    metadata: dict[str, str] | None = None,
    dynamic_size: bool = False,
) -> ExportResult:
    """Write ``model`` to ``path`` with the exporter for its suffix, complete or not at all.

    Parameters
    ----------
    model
        On any device and in any mode; both stay as they are.
    example_inputs
        Its inputs, batch first: a tensor, a tuple, or a dict of named ones, whose names the file's
        inputs get. The file takes any batch size.
    path
        An existing file is replaced.
    metadata
        Stored in the file.
    dynamic_size
        Whether the file takes images (n, C, H, W) of any height and width, as far as the network does: try
        one, as :func:`mint_compress.exporting.parity.check_other_size` does.

    Raises
    ------
    MintError
        No such folder, no such exporter, or a model the exporter cannot write.
    CheckFailed
        The file that was written is not valid.
    """
    path = Path(path)
    exporter = find_exporter(path)
    if not path.parent.is_dir():
        raise MintError(f"No folder '{path.parent}' to write '{path.name}' to. Make it first.")
    if path.is_dir():
        raise MintError(f"'{path}' is a folder. Give the name of a file in it.")
    if dynamic_size and not any(x.ndim == IMAGES for x in tensors(example_inputs)):
        raise MintError("dynamic-size is for images (n, C, H, W), and the network takes none. Leave it out.")
    more = {"dynamic_size": True} if dynamic_size else {}  # others' exporters may not know it
    with writing(path):
        return exporter.export(model, example_inputs, path, metadata=metadata, **more)


def arrays(session: Session, inputs: Inputs) -> tuple[Array, ...]:
    """What ``session.run`` takes: the tensors of a dict by the names of its inputs, others in their order.

    Raises
    ------
    MintError
        The session has an input that the dict has not.
    """
    if not isinstance(inputs, dict):
        return tuple(x.cpu().numpy() for x in tensors(inputs))
    names = [spec.name for spec in session.inputs]
    if unknown := [name for name in names if name not in inputs]:
        raise MintError(f"The model has an input '{unknown[0]}'; the data has {', '.join(inputs)}.")
    return tuple(inputs[name].cpu().numpy() for name in names)


@contextmanager
def on_cpu(model: nn.Module) -> Iterator[nn.Module]:
    """Lend ``model`` in eval mode on the CPU: itself if it is there already, else a copy."""
    tensors = chain(model.parameters(), model.buffers())
    there = all(tensor.device.type == "cpu" for tensor in tensors)
    with evaluating(model if there else copied(model).cpu()) as network:
        yield network


def _installed() -> list[Exporter]:
    found: list[Exporter] = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found.append(point.load()())
        except Exception as error:  # somebody else's package: one that is broken must not stop the rest
            _log.warning("Exporter '%s' (%s) cannot be loaded: %s", point.name, point.value, error)
    return found
