"""What ``torch.save`` wrote, read without running what is in it.

A file may come from anywhere. It is checked from the outside first (regular file, kind, checksums),
then its pickle is followed step by step without doing any of them: what would be called, and how much
memory would be declared, is known before PyTorch's weights-only unpickler does it with layer classes
on its allow-list.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import pickle
import re
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import EnumType
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from mint_compress.checkpoints.pickle_scan import (
    ACTIVATIONS,
    ENUMERATIONS,
    INERT,
    MOST_STEPS,
    PARTIAL,
    CallsError,
    LayerPartial,
    Recipe,
)
from mint_compress.errors import MintError, first_line, shown

log = logging.getLogger(__name__)

LAYER_PACKAGES = (
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "mint_compress.zoo",
    "mint_compress.nn.input_selection",
)

# what reading a broken file was seen to raise; any of them means: damaged
DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, MemoryError),
    *(RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError),
)

SAVE_WEIGHTS = "torch.save(model.state_dict(), 'weights.pt')"


class _Inert:
    """Stands in for an object beside the weights that is not needed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def regular_file(path: Path) -> Path:
    """``path``, if it is a readable regular file or a link to one; a MintError otherwise."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise MintError(f"{path} is a link to {os.readlink(path)}, which does not exist.") from None
        raise MintError(f"No such file: {path}. Check the name and the folder.") from None
    except (OSError, ValueError) as error:
        raise MintError(f"Cannot read {path}: {error}.") from None
    if stat.S_ISDIR(mode):
        raise MintError(f"{path} is a folder. Give the checkpoint file inside it (.pt, .pth, .safetensors).")
    if not stat.S_ISREG(mode):
        raise MintError(f"{path} is not a regular file. Copy what it delivers into a file first.")
    if not os.access(path, os.R_OK):
        raise MintError(f"{path} may not be read by this user. Change its permissions.")
    return path


def file_kind(path: Path) -> str:
    """'zip', 'safetensors' or 'pickle' (before PyTorch 1.6), by content; a MintError for anything else."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        raise MintError(f"{path} is empty. Download or save it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    if head.startswith(b"version https://git-lfs"):
        raise MintError(f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise MintError(f"{path} is a web page, not a checkpoint. Download the file behind the page.")
    if path.suffix == ".onnx":
        raise MintError(f"{path} is an ONNX model, which cannot be pruned. Give the PyTorch checkpoint.")
    raise MintError(
        f"{path} is not a PyTorch checkpoint (it begins with {head[:8]!r}). Save one: {SAVE_WEIGHTS}"
    )


def damaged(path: Path, reason: str = "truncated or damaged") -> MintError:
    """The error for a file that is not what it once was."""
    return MintError(f"{path} cannot be read: it is {reason}. Download or save it again.")


def unpickle(path: Path, *, trust: Iterable[str] = ()) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU, read with ``weights_only=True``.

    Layer classes of torch.nn, torchvision, timm and of the modules named in ``trust`` are built;
    anything else that is not plain data is refused with a MintError.
    """
    allowed: list[Any] = [(_Inert, name) for name in INERT]
    sizes = _check_archive(path) if file_kind(path) == "zip" else None
    with path.open("rb") as stream:
        if sizes is not None:
            allowed += _needed(stream, path, tuple(trust))
        _follow(stream, path, {name for _, name in allowed}, sizes)
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                # about pickle protocols: what cannot be read raises anyway
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except MintError:
            raise
        except DAMAGED as error:
            # torch's own message advises weights_only=False
            log.debug("%s: %s", path, error)
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
    raise _wants_call(path, named.group(1), archive=sizes is not None) if named else damaged(path)


def _follow(stream: BinaryIO, path: Path, allowed: set[str], sizes: dict[str, int] | None) -> None:
    """Refuse a file whose pickles would call anything, or declare more memory than the file has."""
    recipe = Recipe(allowed)
    try:
        _take_steps(recipe, stream, path, sizes)
    except CallsError as error:
        raise _wants_call(path, str(error), archive=sizes is not None) from None
    except MintError:
        raise
    except DAMAGED as error:
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    stream.seek(0)


def _take_steps(recipe: Recipe, stream: BinaryIO, path: Path, sizes: dict[str, int] | None) -> None:
    with warnings.catch_warnings():
        # pickletools decodes what it then refuses, and Python warns of its escapes
        warnings.simplefilter("ignore")
        if sizes is not None:
            # by the reader that torch.load uses, so that both see the same record
            stream.seek(0)
            steps = torch._C.PyTorchFileReader(stream).get_record("data.pkl")
            recipe.require(len(steps) <= MOST_STEPS)
            recipe.follow(io.BytesIO(steps))
            recipe.require(all(n <= sizes.get(f"data/{k}", 0) for k, n in recipe.storages.items()))
        else:
            # magic number, version, the writer's machine, the weights, the names of their storages
            for _ in range(5):
                recipe.follow(stream)
            recipe.require(sum(recipe.storages.values()) <= path.stat().st_size)


def _wants_call(path: Path, name: str, *, archive: bool) -> MintError:
    name = shown(name)
    if archive:
        return MintError(
            f"{path} asks to run {name}, so it was not read. If it is your own file, save the weights "
            f"alone, {SAVE_WEIGHTS}, and give --arch."
        )
    return MintError(
        f"{path} asks for {name}, but the format from before PyTorch 1.6 is read for plain tensors "
        f"only. Where the file was made, save the weights alone, {SAVE_WEIGHTS}, and give --arch."
    )


def _check_archive(path: Path) -> dict[str, int]:
    """Member -> bytes; refuses archives that are no weights, that are more than their size, that fail
    their CRC, or that another reader could see in another way.
    """
    remedy = f"Load it where it was made and save the weights: {SAVE_WEIGHTS}"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # torch writes one folder around everything, named after the file
            names = {m.filename.partition("/")[2] for m in members}
            files = {name.rpartition("/")[2] for name in names} | {m.filename for m in members}
            if names & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in files:
                raise MintError(
                    f"{path} is a torch.export program (.pt2): its graph cannot be pruned and loading "
                    f"it can run code. Save the weights of the module it was made from: {SAVE_WEIGHTS}"
                )
            if "constants.pkl" in names or any(n.startswith("code/") for n in names):
                raise MintError(f"{path} is TorchScript, whose graph cannot be pruned. {remedy}")
            if "data.pkl" not in names:
                raise MintError(f"{path} is a zip archive without a PyTorch checkpoint in it. {remedy}")
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise MintError(f"{path} is a compressed archive, which torch.save never writes. {remedy}")
            if sum(m.file_size for m in members) > path.stat().st_size:
                raise damaged(path, "an archive that unpacks to more than its size")
            if _ambiguous(archive):
                raise damaged(path, "an archive that torch.save did not write: of two, or of several folders")
            flipped = archive.testzip()
    except MintError:
        raise
    except DAMAGED as error:
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    if flipped is not None:
        raise damaged(path, f"damaged (the checksum of {flipped!r} is wrong)")
    return {m.filename.partition("/")[2]: m.file_size for m in members}


def _ambiguous(archive: zipfile.ZipFile) -> bool:
    """Whether names are double, lead elsewhere, or the archive begins in the middle of its file."""
    members = archive.infolist()
    names = [m.filename.casefold() for m in members]
    folders = {name.partition("/")[0] for name in names}
    return (
        len(set(names)) < len(names)
        or len(folders) > 1
        or any(".." in n.split("/") or n.startswith("/") or "\\" in n for n in names)
        or any(m.orig_filename != m.filename for m in members)
        or min(m.header_offset for m in members) > 0
    )


def _needed(stream: BinaryIO, path: Path, trust: tuple[str, ...]) -> list[tuple[Any, str]]:
    """What a pickle names beyond plain tensors, with its name, when every bit of it may be had."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(stream)) - set(INERT)  # type: ignore[arg-type]
    except MintError:
        raise
    except DAMAGED as error:
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    packages = (*LAYER_PACKAGES, *trust)
    known = {PARTIAL, *ACTIVATIONS, *ENUMERATIONS}
    # before anything is imported for the sake of the file
    for name in sorted(names - known):
        module, _, leaf = name.rpartition(".")
        if not inside(module, packages):
            raise _wants_code(path, module, leaf)
    return [(_found(name, path, packages, trust), name) for name in sorted(names)]


def _found(name: str, path: Path, packages: tuple[str, ...], trust: tuple[str, ...]) -> Any:
    if name == PARTIAL:
        return LayerPartial
    module, _, leaf = name.rpartition(".")
    try:
        with searching_here(inside(module, trust)):
            found = getattr(importlib.import_module(module), leaf, None)
    except MintError:
        raise
    except (ImportError, *DAMAGED) as error:
        raise MintError(
            f"{path} needs {shown(name)}: {first_line(error)}. Install what defines it."
        ) from None
    if name in ACTIVATIONS or (name in ENUMERATIONS and isinstance(found, EnumType)):
        return found
    # a name can be re-exported from elsewhere: what counts is where the class is defined
    if (
        not isinstance(found, type)
        or not issubclass(found, nn.Module)
        # these are made of source code or of a program
        or issubclass(found, torch.fx.GraphModule | torch.jit.ScriptModule)
        or not inside(found.__module__, packages)
    ):
        raise MintError(
            f"{path} needs {shown(name)}, which is not a layer (a class derived from torch.nn.Module), "
            f"so it was not read. Save the weights alone, {SAVE_WEIGHTS}, and give --arch."
        )
    return found


def _wants_code(path: Path, module: str, leaf: str) -> MintError:
    module = shown(IMPORT_MAPPING.get(module, module))
    name = shown(f"{module}.{leaf}")
    alone = f"save the weights alone, {SAVE_WEIGHTS}, and give --arch"
    if module.split(".")[0] in {*sys.stdlib_module_names, "torch"}:
        return MintError(f"{path} asks to run {name}, so it was not read. If it is your own file, {alone}.")
    if module == "__main__":
        return MintError(f"{path} needs {name}, a class of the script that wrote it. There, {alone}.")
    return MintError(
        f"{path} needs {name}, a class that is not PyTorch's. Only if you made this file: --trust {module} "
        f"imports that module, which runs its code, and lets its layer classes be built. Otherwise {alone}."
    )


def inside(module: str, packages: Iterable[str]) -> bool:
    """Whether ``module`` is one of ``packages`` or lies in one."""
    return any(module == p or module.startswith(p + ".") for p in packages)


@contextmanager
def searching_here(wanted: bool = True) -> Iterator[None]:
    """Let imports that the user asked for find modules in the working folder, after all others."""
    here = os.getcwd()
    if wanted:
        sys.path.append(here)
    try:
        yield
    finally:
        if wanted:
            sys.path.remove(here)
