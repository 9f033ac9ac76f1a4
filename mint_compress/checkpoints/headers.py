"""What a file of ours says about the network whose weights it holds: read as data and checked as data."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.damage import damaged
from mint_compress.errors import MintError, shown
from mint_compress.surgery.layer_sizes import LARGEST

FORMAT = 2
"""Of the header: 2 since its checksum covers the header too, and not the tensors alone."""
HEADER_KEY = "mint_compress"
MOST_NESTED = 100


@dataclass(frozen=True)
class Header:
    """The header of a file, every part of the type that it says.

    Attributes
    ----------
    builder
        What made the network before it was pruned.
    input_shape
        Without the batch, positive.
    shapes
        Layer -> {attribute: size as JSON}; see :func:`mint_compress.surgery.layer_sizes.shape_spec`.
    selecting
        Qualified names of the layers that select among their inputs.
    separate
        Qualified names of the modules that have taken an nn.MultiheadAttention's place.
    ties
        Name of a tensor -> name of the tensor that it is one with.
    plan
        The pruning plan as JSON.
    """

    builder: Builder | None
    input_shape: tuple[int, ...] | None
    shapes: dict[str, dict[str, Any]]
    selecting: tuple[str, ...]
    separate: tuple[str, ...]
    ties: dict[str, str]
    plan: dict[str, Any] | None


def check_format(raw: object, path: Path) -> dict[str, Any]:
    """``raw``, if it is the JSON object of a header in a format that this version reads."""
    made = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or type(made) is not int or made < 1 or _depth(raw) > MOST_NESTED:
        raise damaged(path, f"without a valid {HEADER_KEY} header")
    if made > FORMAT:
        raise MintError(
            f"{path} has format {made}, and this version reads up to {FORMAT}. "
            "Update: pip install -U mint-compress"
        )
    return raw


def _depth(value: object) -> int:
    """How deep objects and lists lie in one another."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        level = [part for v in level for part in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


def checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> int:
    """CRC-32 over all tensors in the order of their names: safetensors has no checksum of its own.

    With a ``header``, over the names, types and shapes and over that header as well; format 1 did
    without.
    """
    crc = 0
    for name, tensor in sorted(tensors.items()):
        if header is not None:
            crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    if header is None:
        return crc
    rest = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode(), crc)


def understood(raw: Mapping[str, Any], path: Path) -> Header:
    """The header in the JSON object ``raw``; older files lack some of its parts.

    Raises
    ------
    MintError
        A part is of another type than :class:`Header` says.
    """
    shape = raw.get("input_shape")
    if shape is not None and not (isinstance(shape, list) and all(_is_length(n) for n in shape)):
        raise _unusable("input shape", shape, path)
    shapes = raw.get("shapes")
    if not isinstance(shapes, dict) or not all(isinstance(sizes, dict) for sizes in shapes.values()):
        raise _unusable("shapes", shapes, path)
    ties = raw.get("ties") or {}
    if not isinstance(ties, dict) or not all(isinstance(name, str) for name in ties.values()):
        raise _unusable("ties", ties, path)
    plan = raw.get("plan")
    if not isinstance(plan, dict | None):
        raise _unusable("plan", plan, path)
    return Header(
        _builder(raw.get("builder"), path),
        None if shape is None else tuple(shape),
        shapes,
        _names(raw, "selecting", path),
        _names(raw, "separate", path),
        ties,
        plan,
    )


def _names(raw: Mapping[str, Any], part: str, path: Path) -> tuple[str, ...]:
    names = raw.get(part) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _unusable(f"{part} layers", names, path)
    return tuple(names)


def _is_length(value: object) -> bool:
    return type(value) is int and 0 < value < LARGEST


def _unusable(part: str, value: object, path: Path) -> MintError:
    return MintError(
        f"{path} has a header that cannot be used: {part} {shown(repr(value))}. Save the model again."
    )


def _builder(saved: object, path: Path) -> Builder | None:
    if saved is None:
        return None
    name, kwargs = (saved.get("name"), saved.get("kwargs")) if isinstance(saved, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(kwargs, dict):
        raise MintError(f"{path} has a header without a valid builder. Save the model again.")
    return Builder(name, kwargs)
