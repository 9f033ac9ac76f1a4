"""Memory that is freed goes back to the system: glibc keeps pieces of up to 32 MiB, gigabytes in all."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SET_BY_USERS = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
OWN_PAGES = 15 * 2**20
"""Bytes from which on a piece has pages of its own, which go when it is freed. To ask the system for pages
takes longer than many a layer does."""
LEFT_FREE = 128 * 2**20
"""Bytes that may lie free at the end of the heap: with less, each layer hands them back and asks again."""


def trim_memory() -> None:
    """Hand back what lies free at this moment."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def keep_little_memory() -> None:
    """Let pieces of :data:`OWN_PAGES` and more go back as soon as they are freed, and smaller ones stay.

    It holds for the whole process and cannot be undone, so it is for the command to do, not for the library.
    What somebody has set in the environment stays.
    """
    if not SET_BY_USERS & os.environ.keys() and (option := _of_glibc("mallopt")) is not None:
        option(M_MMAP_THRESHOLD, OWN_PAGES)
        option(M_TRIM_THRESHOLD, LEFT_FREE)


def _of_glibc(name: str) -> Callable[..., Any] | None:
    """None where the C library has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
