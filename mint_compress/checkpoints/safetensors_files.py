"""Safetensors files, of anybody's or ours: their tensors, and our header where there is one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from torch import Tensor

from mint_compress.checkpoints.damage import damaged, reading
from mint_compress.checkpoints.headers import HEADER_KEY, Header, check_format, checksum, understood
from mint_compress.checkpoints.tensors import check_storage
from mint_compress.errors import MintError

# the json module at text that is none, or too deep, or a number of too many digits
JSON = (ValueError, RecursionError)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Header | None]:
    """The tensors in a file, and our header if it has one.

    Raises
    ------
    MintError
        It is damaged, holds no tensors, or has a header that is not as we write it.
    """
    _check_names(path)
    tensors, text = _contents(path)
    if text is None:
        if not tensors:
            raise MintError(f"{path} holds no tensors. Save the weights again.")
        return tensors, None
    with reading(path, *JSON):
        found = json.loads(text, object_pairs_hook=_once)
    raw = check_format(found, path)
    # before anything is computed with them
    check_storage(tensors, path)
    if raw.get("crc32") != (checksum(tensors) if raw["format"] == 1 else checksum(tensors, raw)):
        raise damaged(path, "damaged (the checksum of its tensors and header is wrong)")
    return tensors, understood(raw, path)


def _contents(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors, and the text of our header."""
    from safetensors import SafetensorError, safe_open

    # safetensors itself, and PyTorch at a type, shape or size that it has not
    raised = (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, OverflowError, MemoryError)
    with reading(path, *raised), safe_open(path, framework="pt", device="cpu") as file:
        notes = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, notes.get(HEADER_KEY)


def _check_names(path: Path) -> None:
    """Refuse a safetensors header that names a tensor twice: readers differ in which one they take."""
    with path.open("rb") as stream:
        # file_kind has seen that there are more than 8 bytes
        (length,) = struct.unpack("<Q", stream.read(8))
        text = stream.read(length)
    with reading(path, *JSON):
        json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found
