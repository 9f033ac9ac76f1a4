"""The weights in a checkpoint file, as plain data, whatever wrote them and however they are wrapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints.damage import SAVE_WEIGHTS, damaged
from mint_compress.checkpoints.file_kinds import file_kind, regular_file
from mint_compress.checkpoints.headers import Header
from mint_compress.checkpoints.safe_load import unpickle
from mint_compress.checkpoints.safetensors_files import read_safetensors
from mint_compress.checkpoints.tensors import as_float32, check_finite, check_storage
from mint_compress.checkpoints.whole_modules import checked_module
from mint_compress.errors import MintError, shown

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: ``tensors`` (a state_dict, floats as float32) or a whole ``module``, never both.

    ``arch`` is the architecture's name where the file records one, ``header`` what
    :func:`mint_compress.checkpoints.saving.save` noted.
    """

    tensors: dict[str, Tensor] | None
    module: nn.Module | None
    arch: str | None = None
    header: Header | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], *, trust: Iterable[str] = ()) -> Checkpoint:
    """Read the weights in a file; nothing in it is executed.

    Parameters
    ----------
    path
        A regular file (or a symbolic link to one): ``torch.save`` of a state_dict, of a dict around
        one, or of a whole module; or safetensors.
    trust
        Names of modules that may be imported, so that pickled layers of their classes can be built.

    Returns
    -------
    Checkpoint
        On the CPU, floats as float32; wrappers and prefixes such as ``module.`` are taken off.

    Raises
    ------
    MintError
        The file is missing, damaged, of another kind, asks for code, or holds NaN or infinity.
    """
    file = regular_file(Path(path))
    weights: nn.Module | dict[str, Tensor]
    header, arch = None, None
    if file_kind(file) == "safetensors":
        weights, header = read_safetensors(file)
    else:
        weights, arch = _unwrapped(unpickle(file, trust=trust), file)
    if isinstance(weights, nn.Module):
        return Checkpoint(None, checked_module(weights, file), arch)
    check_storage(weights, file)
    tensors, notes = as_float32(weights)
    check_finite(tensors, file)
    return Checkpoint(tensors if header else _without_prefixes(tensors), None, arch, header, notes)


def _unwrapped(found: Any, path: Path) -> tuple[nn.Module | dict[str, Tensor], str | None]:
    """The module or state_dict in what was unpickled, and the architecture's name beside it."""
    arch = None
    # as deep as {"model": {"state_dict": ...}} and once more
    for _ in range(3):
        if isinstance(found, nn.Module):
            return _without_parallel(found, path), arch
        if not isinstance(found, dict):
            raise MintError(f"{path} holds a {type(found).__name__}, not weights. Save them: {SAVE_WEIGHTS}")
        found = _items(found)
        if isinstance(found.get("arch"), str):
            arch = found["arch"]
        wrapped = [found[k] for k in WRAPPERS if isinstance(found.get(k), dict | nn.Module)]
        if not wrapped:
            break
        found = wrapped[0]
    return _state_dict(found, path), arch


def _without_parallel(module: nn.Module, path: Path) -> nn.Module:
    if not isinstance(module, nn.DataParallel):
        return module
    parts = vars(module).get("_modules")
    inner = _items(parts).get("module") if isinstance(parts, dict) else None
    if not isinstance(inner, nn.Module):
        raise damaged(path, "a DataParallel without a module in it")
    return inner


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise damaged(path, "one dict in another without weights in them")
    found = _items(found)
    states = [_items(value) for value in found.values() if _is_state_dict(value)]
    # {"net": state_dict, "epoch": 3}: under whatever name, when there is only one
    if len(states) == 1 and not any(isinstance(v, Tensor) for v in found.values()):
        found = states[0]
    tensors = {k: v for k, v in found.items() if not (isinstance(k, str) and k.endswith("_extra_state"))}
    strange = [k for k, v in tensors.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if not tensors or strange:
        keys = ", ".join(_key(k) for k in list(found)[:5]) or "nothing"
        raise MintError(
            f"{path} holds no state_dict, alone or under {', '.join(WRAPPERS)}; it holds {keys}. "
            f"Save the weights: {SAVE_WEIGHTS}"
        )
    return tensors


def _items(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """What is in a dict of the file; an OrderedDict can have attributes in the place of its methods."""
    return dict(dict.items(mapping))


def _key(key: object) -> str:
    """A key for a message; tensors and layers can be keys, and would run their own code to be printed."""
    return shown(key) if isinstance(key, str | int | float | None) else type(key).__name__


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    values = _items(value).values()
    return bool(values) and all(isinstance(v, Tensor) for v in values)


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the bare module has them: without DataParallel, averaging and torch.compile around it."""
    # AveragedModel counts its updates beside the weights
    named = {k: t for k, t in tensors.items() if k != "n_averaged"}
    while named and all(k.startswith("module.") for k in named):
        named = {k.removeprefix("module."): t for k, t in named.items()}
    bare = {k.replace("_orig_mod.", ""): t for k, t in named.items()}
    if bare.keys() != named.keys() and len(bare) == len(named):
        return _without_prefixes(bare)
    return named
