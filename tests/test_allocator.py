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
import torch
from mint_compress.allocator import OWN_PAGES, keep_little_memory, trim_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "the command's":
    keep_little_memory()
for _ in range(3):
    torch.ones(6 * 2**20)  # 24 MiB: from then on glibc keeps pieces of that size
before = resident()
large, small = [], []
for _ in range(40):
    large.append(torch.ones(OWN_PAGES // 4))
    small.append(torch.ones(1000))
taken = resident() - before
large.clear()
freed = resident() - before
if sys.argv[1] == "asked":
    trim_memory()
print(taken, freed, resident() - before)
"""


def left(how: str) -> tuple[float, float, float]:
    """MiB that 40 pieces of 16 MiB take, that are kept when they are freed, and in the end."""
    done = subprocess.run([sys.executable, "-c", FREED, how], check=True, stdout=subprocess.PIPE, text=True)
    taken, freed, end = map(float, done.stdout.split())
    assert taken > 600
    return taken, freed, end


@pytest.mark.skipif(not GLIBC, reason="other C libraries hand memory back by their own rules")
def test_glibc_keeps_what_is_freed_unless_it_is_told() -> None:
    assert left("default")[2] > 600
    assert left("asked")[1] > 600 and left("asked")[2] < 60
    assert left("the command's")[1] < 60
