"""What is freed goes back to the system: at once in the command, when asked elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
FREED = """
import resource, sys
from pathlib import Path
import numpy
from mint_compress.allocator import OWN_PAGES, keep_little_memory, trim_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "the command's":
    keep_little_memory()
for _ in range(3):
    numpy.ones(3 * 2**20)  # 24 MiB: from then on glibc keeps pieces of that size
pieces = [numpy.ones(OWN_PAGES // 8) for _ in range(40)]
before = resident()
del pieces[::2]  # the others stand between them
freed = before - resident()
if sys.argv[1] == "asked":
    trim_memory()
print(freed, before - resident())
"""


def handed_back(how: str) -> tuple[float, float]:
    """Of 20 pieces of 15 MiB that are let go of: MiB at once, and in the end."""
    done = subprocess.run([sys.executable, "-c", FREED, how], check=True, stdout=subprocess.PIPE, text=True)
    at_once, end = map(float, done.stdout.split())
    return at_once, end


@pytest.mark.skipif(not GLIBC, reason="other C libraries hand memory back by their own rules")
def test_glibc_keeps_what_is_freed_unless_it_is_told() -> None:
    assert handed_back("default")[1] < 30
    assert handed_back("asked")[0] < 30 and handed_back("asked")[1] > 270
    assert handed_back("the command's")[0] > 270
