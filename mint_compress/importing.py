"""What the user names as ``package.module:object``: where it is looked for, and how it is imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mint_compress.errors import MintError, foreign


def inside(module: str, packages: Iterable[str]) -> bool:
    """Whether ``module`` is one of ``packages`` or lies in one."""
    return any(module == p or module.startswith(p + ".") for p in packages)


@contextmanager
def searching_here(wanted: bool = True, *, first: bool = False) -> Iterator[None]:
    """Let imports that the user asked for find modules in the working folder, after all others or first."""
    here = os.getcwd()
    if wanted:
        sys.path.insert(0 if first else len(sys.path), here)
    try:
        yield
    finally:
        if wanted:
            sys.path.remove(here)


def import_named(spec: str, what: str) -> Any:
    """What ``package.module:name`` stands for; modules in the working folder are found first.

    Parameters
    ----------
    spec
        The name after the colon may have dots.
    what
        For messages: ``the data``, ``the task``.

    Raises
    ------
    MintError
        No such module, nothing of that name in it, or the module raises while it is imported.
    """
    module, _, name = spec.partition(":")
    with searching_here(first=True), foreign(f"Importing {what} {spec}"):
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise MintError(f"Cannot import {module!r} for {what} {spec!r}: {error}.") from error
        except SystemExit as error:
            raise MintError(f"{module!r}, imported for {what}, called sys.exit({error.code!r}).") from error
        for part in name.split("."):
            found = getattr(found, part)
    return found
