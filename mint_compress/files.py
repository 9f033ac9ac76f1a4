"""Files that are there whole or not at all, and what identifies one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mint_compress.errors import MintError


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; the file made there takes its place when the block ends well.

    Raises
    ------
    MintError
        The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written, is the user's to mend, not a fault of ours.

    Raises
    ------
    MintError
        What the system says, with the name of the file.
    """
    try:
        yield
    except OSError as error:
        raise MintError(f"Cannot write {path}: {error.strerror or error}.") from error


WEIGHTS_BESIDE = {".xml": ".bin"}
"""Formats of two files: suffix of the export -> of the one with its weights, which is found by its name."""


def parts_of(export: Path) -> tuple[Path, ...]:
    """The files that an export consists of, itself first: OUT.xml has OUT.bin beside it."""
    weights = WEIGHTS_BESIDE.get(export.suffix.lower())
    return (export,) if weights is None else (export, export.with_suffix(weights))


def size_of(export: Path) -> int:
    """Bytes of an export, in all of its files."""
    return sum(part.stat().st_size for part in parts_of(export))


class Outputs(NamedTuple):
    """The files one run may write, all beside the export."""

    export: Path
    samples: Path
    int8: Path
    int8_samples: Path
    fp16: Path
    fp16_samples: Path
    tensors: Path
    report: Path
    page: Path
    plan: Path


def outputs(output: str | Path) -> Outputs:
    """Names of the files that belong to ``OUT.onnx``.

    Itself and OUT.verify.npz, OUT.int8.onnx and OUT.int8.verify.npz, the same of fp16, OUT.safetensors,
    OUT.json, OUT.html and OUT.plan.json.
    """
    path = Path(output)
    exports = (path, *(path.with_suffix(f".{kind}{path.suffix}") for kind in ("int8", "fp16")))
    rest = map(path.with_suffix, (".safetensors", ".json", ".html", ".plan.json"))
    return Outputs(*(file for export in exports for file in (export, samples_of(export))), *rest)


def samples_of(export: Path) -> Path:
    """Where the samples are that an export is verified by: OUT.onnx -> OUT.verify.npz."""
    return export.with_suffix(".verify.npz")


def hidden_folder(written: Path) -> Path:
    """Beside a file that a run writes: what the run keeps until it is done."""
    return written.with_name(f".{written.name}.resume")


def placing_mark(folder: Path) -> Path:
    """In a hidden folder: there from when the run began to put its files in their places."""
    return folder / "placing"


def check_file(what: str, path: str | Path) -> None:
    """Refuse what is not a regular file (a symlink to one is one).

    Raises
    ------
    MintError
        When nothing, or something else, is there, or when it may not be read.
    """
    path = Path(path)
    try:
        exists, regular = path.exists(), path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or one with a null byte
        exists = regular = False
    if not exists:
        raise MintError(f"No such {what} file: {str(path)!r}. Check the path.")
    if not regular:
        raise MintError(f"The {what} {str(path)!r} is not a regular file. Give the file itself.")
    if not os.access(path, os.R_OK):
        raise MintError(f"The {what} {str(path)!r} may not be read. Change its permissions.")
