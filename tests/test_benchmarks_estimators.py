"""The script that makes the table of the estimators' speed runs, at sizes that say nothing about speed."""

import importlib
from pathlib import Path

import pytest
from click.testing import CliRunner

import mint_compress

FOLDER = Path(next(iter(mint_compress.__path__))).parent / "benchmarks"


def test_the_table_is_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("estimators")
    written = tmp_path / "table.md"
    options = ["--quick", "--runs", "2", "--only", "*spanning tree*", "--output", str(written)]
    done = CliRunner().invoke(script.main, options, catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout == written.read_text()
    lines = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| exact")]
    assert [line[3].strip() for line in lines] == ["csgraph", "csgraph and cdist"] * 2
    for line in lines:
        ours, theirs = (float(cell.split()[0]) for cell in (line[2], line[4]))
        assert float(line[5]) == pytest.approx(theirs / ours, rel=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_the_layers_are_those_of_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    layers = importlib.import_module("estimators").VGG16
    assert len(layers) == 14
    assert sum(min(128, d) * min(128, c) for d, c in layers) == 193_792
