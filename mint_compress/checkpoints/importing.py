"""Which module lies in which package, and where modules that the user names are looked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
