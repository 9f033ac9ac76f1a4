"""What ``torch.save`` wrote, read without running what is in it.

A file may come from anywhere. It is checked from the outside first (regular file, kind, checksums),
then its pickle is followed step by step without doing any of them: what would be called, and how much
memory would be declared, is known before PyTorch's weights-only unpickler does it with layer classes
on its allow-list.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mint_compress.checkpoints.archives import check_archive
from mint_compress.checkpoints.damage import SAVE_WEIGHTS, damaged, reading
from mint_compress.checkpoints.file_kinds import file_kind
from mint_compress.checkpoints.layer_classes import layer_classes
from mint_compress.checkpoints.pickle_scan import INERT, MOST_STEPS, CallsError, Recipe
from mint_compress.errors import MintError, shown

log = logging.getLogger(__name__)


class _Inert:
    """Stands in for an object beside the weights that is not needed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def unpickle(path: Path, *, trust: Iterable[str] = ()) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU, read with ``weights_only=True``.

    Layer classes of torch.nn, torchvision, timm and of the modules named in ``trust`` are built;
    anything else that is not plain data is refused with a MintError.
    """
    allowed: list[Any] = [(_Inert, name) for name in INERT]
    sizes = check_archive(path) if file_kind(path) == "zip" else None
    with path.open("rb") as stream:
        if sizes is not None:
            allowed += layer_classes(_names(stream, path), path, tuple(trust))
        _follow(stream, path, {name for _, name in allowed}, sizes)
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                # about pickle protocols: what cannot be read raises anyway
                warnings.simplefilter("ignore")
                return torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch's unpickler, and __setstate__ of the layers' classes
            # torch's own message advises weights_only=False
            log.debug("%s: %s", path, error)
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
    raise _wants_call(path, named.group(1), archive=sizes is not None) if named else damaged(path)


def _names(stream: BinaryIO, path: Path) -> set[str]:
    """What the pickle in an archive names beyond plain tensors."""
    # PyTorch's own scan of the steps, by the same code as its unpickler
    with reading(path, Exception):
        found = torch.serialization.get_unsafe_globals_in_checkpoint(stream)  # type: ignore[arg-type]
    return set(found) - set(INERT)


def _follow(stream: BinaryIO, path: Path, allowed: set[str], sizes: dict[str, int] | None) -> None:
    """Refuse a file whose pickles would call anything, or declare more memory than the file has."""
    recipe = Recipe(allowed)
    try:
        if sizes is not None:
            steps = _steps(stream, path)
            recipe.require(len(steps) <= MOST_STEPS)
            recipe.follow(io.BytesIO(steps))
            recipe.require(all(n <= sizes.get(f"data/{k}", 0) for k, n in recipe.storages.items()))
        else:
            # magic number, version, the writer's machine, the weights, the names of their storages
            for _ in range(5):
                recipe.follow(stream)
            recipe.require(sum(recipe.storages.values()) <= path.stat().st_size)
    except CallsError as error:
        raise _wants_call(path, str(error), archive=sizes is not None) from None
    except pickle.UnpicklingError as error:  # the recipe's own, for what torch.save does not write
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    stream.seek(0)


def _steps(stream: BinaryIO, path: Path) -> bytes:
    """The pickle in an archive, by the reader that torch.load uses, so that both see the same record."""
    stream.seek(0)
    with reading(path, RuntimeError, ValueError, OSError, MemoryError):  # PyTorch's, written in C++
        found: bytes = torch._C.PyTorchFileReader(stream).get_record("data.pkl")
    return found


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
