"""The real command, run within this process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mint_compress.cli.app import main

# a test run that a shell has put into the background ignores Ctrl-C, and hands that on to its children
LISTENS: dict[str, Any] = (
    {"preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)} if os.name == "posix" else {}
)
"""For ``subprocess.Popen``: the process can be interrupted, however the tests were started."""


def invoke(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def good(line: str) -> dict[str, Any]:
    result = invoke(f"{line} --json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def refused(folder: Path, line: str, status: int = 2, left: Sequence[str] = ()) -> str:
    """What the one line of the error says; nothing new is in the folder but what is named."""
    before = sorted(p.name for p in folder.iterdir())
    result = invoke(f"{line} --quiet")
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == sorted({*before, *left})
    return result.stderr
