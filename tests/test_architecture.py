"""The rules of the layout, read from the source: who may import whom, who prints, what stays light."""

import ast
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from networks import Chain

import mint_compress

PACKAGE = Path(next(iter(mint_compress.__path__)))
EXPORTERS = PACKAGE.parent / "exporters" / "mint_exporters"

# Rooms (folders, and the files that lie beside them) from the ground up: each imports only what stands on a
# lower floor; inside a room the files may use one another.
FLOORS = [
    {"allocator", "errors", "progress"},
    {"processes"},
    {"files", "options", "importing", "exhaustion", "estimators"},
    {"zoo", "settings", "reporting", "nn"},
    {"data", "surgery", "preflight"},
    {"checkpoints", "graph", "repair", "training"},
    {"memory_need", "scoring"},
    {"planning"},
    {"resuming"},
    {"exporting", "provenance", "run"},
    {"recovery", "verifying"},
    {"reaching"},
    {"compression", "inspecting", "importance"},
    {"sweeping"},
    {"cli"},
    {"__main__"},
]
ROOMS = [room for floor in FLOORS for room in sorted(floor)]

FILES = sorted([*PACKAGE.rglob("*.py"), *EXPORTERS.rglob("*.py")])
HEAVY = {"torchvision", "timm", "accelerate", "sklearn", "onnx", "onnxscript", "onnxruntime", "safetensors"}


class Import(NamedTuple):
    module: str
    names: tuple[str, ...]
    at_top: bool
    """Whether it runs when the file itself is imported."""
    for_types: bool


@cache
def imports(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text()), at_top=True, for_types=False))


def _walk(node: ast.AST, *, at_top: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), at_top, for_types)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield Import(child.module or "", tuple(a.name for a in child.names), at_top, for_types)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _walk(child, at_top=at_top and not deferred, for_types=for_types or typing_only)


def room(module: str) -> str:
    """``mint_compress.estimators.gmi`` -> ``estimators``; ``mint_compress.files`` -> ``files``."""
    return module.split(".")[1]


def name(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return ".".join(["mint_compress", *path.relative_to(PACKAGE).with_suffix("").parts])
    return ".".join(["mint_exporters", *path.relative_to(EXPORTERS).with_suffix("").parts])


def rooms_used(path: Path) -> set[str]:
    """The rooms that a file imports from, ``from mint_compress import x`` included."""
    found = set()
    for one in imports(path):
        if one.module.startswith("mint_compress."):
            found.add(room(one.module))
        elif one.module == "mint_compress":
            found.update(set(one.names) & set(ROOMS))
    return found


def importers(package: str) -> set[str]:
    return {name(path) for path in FILES for one in imports(path) if one.module.split(".")[0] == package}


CORE = [path for path in FILES if path.is_relative_to(PACKAGE) and path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", CORE, ids=name)
def test_a_file_imports_from_lower_floors_only(path: Path) -> None:
    own = room(name(path))
    below = set[str]()
    for floor in FLOORS:
        if own in floor:
            break
        below |= floor
    else:
        pytest.fail(f"give {own} its floor")
    assert rooms_used(path) <= below | {own}


def test_every_room_is_there_and_has_its_floor() -> None:
    assert sorted(ROOMS) == sorted({room(name(path)) for path in CORE})


def test_no_room_hides_a_public_function() -> None:
    """Importing a folder binds its name in the package, where a function of that name is looked for."""
    assert not set(ROOMS) & set(mint_compress.__all__)


def test_few_files_know_torch_pruning() -> None:
    assert importers("torch_pruning") == {
        f"mint_compress.{one}" for one in ("graph.depgraph", "importance", "surgery.slicing")
    }


def test_no_file_needs_accelerate() -> None:
    """Its state is one a process, and cannot be put back by what it makes public; its launcher is welcome."""
    assert not importers("accelerate")


def test_one_file_alone_speaks_to_other_processes() -> None:
    uses = [p for p in FILES if any("distributed" in f"{i.module} {i.names}" for i in imports(p))]
    assert [name(path) for path in uses] == ["mint_compress.processes"]


def test_the_core_never_imports_an_exporter_by_name() -> None:
    assert not [one for one in importers("mint_exporters") if one.startswith("mint_compress")]
    assert not [one for one in importers("onnxruntime") if one.startswith("mint_compress")]


def test_estimators_know_no_network() -> None:
    for path in (PACKAGE / "estimators").glob("*.py"):
        assert rooms_used(path) <= {"errors", "progress", "estimators"}, path.name
        assert "torch.nn" not in _modules(path), path.name


def test_planning_knows_no_module() -> None:
    for path in (PACKAGE / "planning").glob("*.py"):
        assert "torch.nn" not in _modules(path), path.name


def _modules(path: Path) -> set[str]:
    found = set()
    for one in imports(path):
        found |= {one.module, *(f"{one.module}.{each}" for each in one.names)}
    return found


def test_importance_is_a_leaf() -> None:
    assert not [path.name for path in CORE if path.stem != "importance" and "importance" in rooms_used(path)]


def test_optional_and_heavy_packages_are_imported_where_they_are_used() -> None:
    top = {
        (name(path), one.module)
        for path in FILES
        for one in imports(path)
        if one.at_top and not one.for_types
    }
    assert not [(where, what) for where, what in top if what.split(".")[0] in HEAVY]


LIGHT = {
    "allocator",
    "__init__",
    "errors",
    "processes",
    "files",
    "progress",
    "options",
    "settings",
    "reporting",
    "preflight",
    "cli",
    "__main__",
}


def test_what_the_command_needs_to_refuse_bad_input_is_light() -> None:
    # what estimators there are is light; what they compute is not
    whole = [p for p in CORE if room(name(p)) in LIGHT]
    for path in [PACKAGE / "__init__.py", PACKAGE / "estimators" / "__init__.py", *whole]:
        top = [one for one in imports(path) if one.at_top and not one.for_types]
        assert not {one.module.split(".")[0] for one in top} & {"torch", "numpy", "rich", "torch_pruning"}
        used = {room(one.module) for one in top if one.module.startswith("mint_compress.")}
        assert used <= LIGHT | {"estimators"}, path.name


def test_only_the_command_writes_to_the_terminal() -> None:
    for path in FILES:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(call) for call in calls}
        if room(name(path)) != "cli":
            assert not names & {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}, path.name
        assert "print" not in names, path.name
    assert {room(one) for one in importers("click")} == {"cli"}
    assert {room(one) for one in importers("rich")} <= {"cli", "reporting", "inspecting"}


@pytest.mark.parametrize(
    "code",
    [
        "import mint_compress",
        "import mint_compress.settings, mint_compress.errors, mint_compress.reporting",
        "from mint_compress.cli.app import main; main(['--help'], standalone_mode=False)",
        "from mint_compress.cli.app import main; main(['--version'], standalone_mode=False)",
    ],
)
def test_it_answers_within_a_second_and_without_torch(code: str) -> None:
    ends = "\nimport sys; assert not {'torch', 'numpy', 'torch_pruning', 'onnx'} & set(sys.modules)"
    # the best of five: another process may have the machine for a moment
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code + ends], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stderr
        if seconds < 1.0:
            return
    pytest.fail(f"{code!r} took {seconds:.1f} s")


def test_the_document_has_every_room_in_order_and_in_its_own_words() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    said = re.findall(r"^- `(\w+)`: (.+(?:\n +.*)*)", page, re.MULTILINE)
    assert [one for one, _ in said] == ROOMS
    for one, words in said:
        folder = PACKAGE / one / "__init__.py"
        source = folder if folder.exists() else PACKAGE / f"{one}.py"
        docstring = ast.get_docstring(ast.parse(source.read_text()))
        assert " ".join(words.split()) == (docstring or "").splitlines()[0], one


def test_the_estimator_of_the_document_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parents, of which the first is the child and noise: r² = 1/2, and half of log 2 nats."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "architecture.md", "exec"), names)
    generator = torch.Generator().manual_seed(0)
    child, noise, other = torch.randn(3, 200_000, 1, generator=generator)
    parents = torch.cat([child + noise, other, other], 1)
    found = names["correlation"](child, parents, parent_groups=torch.tensor([0, 1, 1]))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([math.log(2) / 2, 0], abs=0.01)

    monkeypatch.setattr("mint_compress.scoring.scores.find_estimator", lambda name: names[name])
    model = Chain().eval()
    batches = [torch.randn(64, 3, 6, 6, generator=generator)]
    groups = mint_compress.find_groups(model, batches[0])
    calibration = mint_compress.calibrate(model, groups, batches, samples=True)
    nats = mint_compress.score(groups, calibration, estimator="correlation").nats
    assert {name: len(values) for name, values in nats.items()} == {
        g.name: g.width for g in groups if g.prunable
    }
    assert all((values > 0).all() for values in nats.values())
