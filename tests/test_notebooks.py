"""The notebooks of docs/notebooks/ run from top to bottom, and show what they last gave."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
PERCENT = re.compile(r"(\d+\.\d+) ?%")


def printed(notebook: object) -> str:
    """What its cells have written."""
    return "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )


def test_they_are_kept_with_what_they_printed() -> None:
    nbformat = pytest.importorskip("nbformat")
    assert [path.stem for path in NOTEBOOKS] == ["timm_to_int8", "torch_pruning"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert PERCENT.search(printed(notebook))
        for cell in notebook.cells:
            if cell.cell_type == "code":
                compile(cell.source, path.name, "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("timm")
    notebook = nbformat.read(path, as_version=4)
    before = printed(notebook)
    client = nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown, given = ([float(x) for x in PERCENT.findall(text)] for text in (before, printed(notebook)))
    # other versions and processors round otherwise, and a network trained for seconds shows it
    assert given == pytest.approx(shown, abs=15)
