"""The layer classes that a pickle names: which may be built, where they are found, under old names too."""

from __future__ import annotations

import importlib
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable
from enum import EnumType
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.checkpoints.damage import SAVE_WEIGHTS
from mint_compress.checkpoints.importing import inside, searching_here
from mint_compress.checkpoints.pickle_scan import ACTIVATIONS, ENUMERATIONS, PARTIAL, LayerPartial
from mint_compress.errors import MintError, first_line, shown

LAYER_PACKAGES = (
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "mint_compress.zoo",
    "mint_compress.nn.input_selection",
)

RENAMED = {"mint_compress.selection": "mint_compress.nn.input_selection"}
"""Modules of this package under the names that older files have for them."""


def layer_classes(names: Iterable[str], path: Path, trust: tuple[str, ...]) -> list[tuple[Any, str]]:
    """What a pickle names beyond plain tensors, each with its name in the file, when all of it may be had.

    Parameters
    ----------
    names
        ``module.Class``, as the file has them.
    path
        The file, for messages.
    trust
        Modules beside :data:`LAYER_PACKAGES` that may be imported and whose layers may be built.

    Raises
    ------
    MintError
        One of them is no layer, or lies elsewhere, or cannot be imported.
    """
    packages = (*LAYER_PACKAGES, *trust)
    wanted = {name: _current(name) for name in sorted(names)}
    known = {PARTIAL, *ACTIVATIONS, *ENUMERATIONS}
    # before anything is imported for the sake of the file
    for name in wanted.values():
        module, _, leaf = name.rpartition(".")
        if name not in known and not inside(module, packages):
            raise _wants_code(path, module, leaf)
    return [(_found(current, path, packages, trust), name) for name, current in wanted.items()]


def _current(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{RENAMED.get(module, module)}.{leaf}"


def _found(name: str, path: Path, packages: tuple[str, ...], trust: tuple[str, ...]) -> Any:
    if name == PARTIAL:
        return LayerPartial
    module, _, leaf = name.rpartition(".")
    with searching_here(inside(module, trust)):
        found = _imported(module, leaf, path)
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


def _imported(module: str, leaf: str, path: Path) -> Any:
    try:
        return getattr(importlib.import_module(module), leaf, None)
    except (Exception, SystemExit) as error:  # whatever the module of a library, or a trusted one, raises
        needs = shown(f"{module}.{leaf}")
        raise MintError(f"{path} needs {needs}: {first_line(error)}. Install what defines it.") from None


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
