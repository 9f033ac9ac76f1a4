"""The real command, run within this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from mint_compress.cli import main


def invoke(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def good(line: str) -> dict[str, Any]:
    result = invoke(f"{line} --json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def refused(folder: Path, line: str, status: int = 2) -> str:
    """What the one line of the error says; nothing new is in the folder."""
    before = sorted(p.name for p in folder.iterdir())
    result = invoke(f"{line} --quiet")
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert sorted(p.name for p in folder.iterdir()) == before
    return result.stderr
