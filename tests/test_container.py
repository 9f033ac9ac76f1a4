"""The Dockerfile and the CI job say what the project says: its files, its packages, its commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from mint_compress.cli.app import main

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
JOB = (ROOT / "examples" / "ci" / "compress.yml").read_text(encoding="utf-8")
LIGHT = ("click", "rich", "numpy", "onnxruntime")
"""What verify needs; docs/install.md says so, too."""


def test_the_build_gets_what_it_copies_and_nothing_else(tmp_path: Path) -> None:
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.M) for name in line.split()
    ]
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in copied)


def test_the_requirements_are_the_projects_with_the_runtime_for_the_cpu(tmp_path: Path) -> None:
    (script,) = re.findall(r"^RUN python > \S+ <<END\n(.*?)^END$", DOCKERFILE, re.M | re.S)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-"]
    done = subprocess.run(command, input=script, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [Requirement(line).name for line in done.stdout.splitlines()]
    assert {"torch", "onnx", "click"} <= set(names) and names.count("onnxruntime") == 1
    assert "onnxruntime-gpu" not in names and "onnxruntime\n" in done.stdout  # on any machine


def test_to_verify_takes_no_more_than_the_documentation_says() -> None:
    (installed,) = re.findall(
        r"^    pip install --no-cache-dir --no-compile (click .*) \$\{MORE\}", DOCKERFILE, re.M
    )
    assert tuple(installed.split()) == LIGHT
    assert f"pip install {' '.join(LIGHT)}" in JOB
    said = " ".join((ROOT / "docs" / "install.md").read_text(encoding="utf-8").split())
    assert f"pip install {' '.join(LIGHT)}" in said


@pytest.mark.parametrize("line", re.findall(r"mint-compress (?:\"|verify).*", JOB))
def test_the_commands_of_the_job_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("$MODEL", "model.pt").replace("$DATA", "digits"))[1:]
    result = CliRunner().invoke(main, words)
    # the options are understood: what is missing is the file alone
    assert result.exit_code == 2 and re.match(r"Error: No such (model|export) file", result.stderr)
