"""The layer classes that a pickle names: which may be built, where they are found, under old names too."""

from __future__ import annotations

import importlib
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable
from enum import EnumType
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.checkpoints.damage import SAVE_WEIGHTS
from mint_compress.checkpoints.pickle_scan import ACTIVATIONS, ENUMERATIONS, PARTIAL, LayerPartial
from mint_compress.errors import MintError, first_line, shown
from mint_compress.importing import inside, searching_here

LAYER_PACKAGES = (
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "mint_compress.zoo",
    "mint_compress.nn.input_selection",
)

MOST_SAID = 6

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
    outside = [n for n in wanted.values() if n not in known and not inside(n.rpartition(".")[0], packages)]
    if outside:
        raise _wants_code(path, outside)
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


def _wants_code(path: Path, names: list[str]) -> MintError:
    """The error for classes and functions that lie where none may be had; what no trust helps comes first."""
    alone = f"save the weights alone, {SAVE_WEIGHTS}, and give --arch"
    modules = {name: _written(name).rpartition(".")[0] for name in names}
    for name, module in modules.items():
        said = shown(_written(name))
        if module.split(".")[0] in {*sys.stdlib_module_names, "torch"}:
            return MintError(
                f"{path} asks to run {said}, so it was not read. If it is your own file, {alone}."
            )
        if module == "__main__":
            return MintError(f"{path} needs {said}, a class of the script that wrote it. There, {alone}.")
    trusted = _packages(modules.values())
    said = " ".join(f"--trust {shown(package)}" for package in trusted[:MOST_SAID])
    if len(trusted) > MOST_SAID:
        said += f" and {len(trusted) - MOST_SAID} more"
    first, modules_needed = shown(_written(names[0])), len(set(modules.values()))
    if modules_needed == 1:
        needs, what = f"{first}, a class that is not PyTorch's", "that module, which runs its code"
        layers = "its layer classes"
    else:
        needs = f"{first} and other classes that are not PyTorch's, of {modules_needed} modules"
        what, layers = "these, which runs their code", "their layer classes"
    return MintError(
        f"{path} needs {needs}. Only if you made this file: {said} imports {what}, and lets {layers} be "
        f"built. Otherwise {alone}."
    )


def _written(name: str) -> str:
    """A class or function under the name that Python 3 has for its module."""
    module, _, leaf = name.rpartition(".")
    return f"{IMPORT_MAPPING.get(module, module)}.{leaf}"


def _packages(modules: Iterable[str]) -> list[str]:
    """The smallest package around those of the modules that lie in the same one, for each of these."""
    roots: dict[str, list[str]] = {}
    for module in modules:
        pieces = module.split(".")
        shared = zip(roots.setdefault(pieces[0], pieces), pieces, strict=False)
        roots[pieces[0]] = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], shared)]
    return [".".join(pieces) for pieces in roots.values()]
