"""The rules of the layout, read from the source: who may import whom, who prints, what stays light."""

import ast
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from networks import Chain

import mint_compress

PACKAGE = Path(next(iter(mint_compress.__path__)))
EXPORTERS = PACKAGE.parent / "exporters" / "mint_exporters"

# Data goes from top to bottom: a file imports only what stands before it.
ORDER = [
    *("errors", "files", "options", "arguments", "inputs", "counting", "copies", "outputs", "devices", "zoo"),
    *(
        "pickles",
        "selection",
        "shapes",
        "unpickling",
        "checkpoints",
        "architectures",
        "fingerprints",
        "models",
    ),
    *("datasets", "splitting", "loaders", "arrays", "data"),
    *(
        "channels",
        "plans",
        "patches",
        "slicing",
        "sizes",
        "labels",
        "operations",
        "tracing",
        "dependency",
        "twins",
        "proving",
        "removal",
        "features",
        "groups",
    ),
    *("sensitivity", "contributions", "calibration", "estimators", "scoring", "planning"),
    *("pruning", "lockstep", "topology", "ridge", "compensation", "evaluation", "layouts", "finetuning"),
    *("exporting", "parity", "verification", "benchmarking", "reporting", "inspecting"),
    *("shipping", "importance", "compression", "sweeping", "cli"),
]

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


def part(module: str) -> str:
    """``mint_compress.estimators.gmi`` -> ``estimators``; files of the package likewise."""
    return module.split(".")[1]


def name(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return ".".join(["mint_compress", *path.relative_to(PACKAGE).with_suffix("").parts])
    return ".".join(["mint_exporters", *path.relative_to(EXPORTERS).with_suffix("").parts])


def internal(path: Path) -> set[str]:
    """The parts of this package that a file imports, ``from mint_compress import x`` included."""
    found = set()
    for one in imports(path):
        if one.module.startswith("mint_compress."):
            found.add(part(one.module))
        elif one.module == "mint_compress":
            found.update(set(one.names) & set(ORDER))
    return found


def importers(package: str) -> set[str]:
    return {name(path) for path in FILES for one in imports(path) if one.module.split(".")[0] == package}


CORE = [path for path in FILES if path.is_relative_to(PACKAGE) and path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", CORE, ids=name)
def test_a_file_imports_only_what_stands_before_it(path: Path) -> None:
    own = part(name(path))
    assert own in ORDER, f"give {own} its place in the order"
    # inside estimators/, the files may use one another
    allowed = set(ORDER[: ORDER.index(own)]) | ({own} if own == "estimators" else set())
    assert internal(path) <= allowed


def test_every_place_in_the_order_is_a_file() -> None:
    assert set(ORDER) == {part(name(path)) for path in CORE}


def test_only_three_files_know_torch_pruning() -> None:
    assert importers("torch_pruning") == {
        f"mint_compress.{one}" for one in ("dependency", "importance", "slicing")
    }


def test_only_finetuning_knows_accelerate() -> None:
    assert importers("accelerate") == {"mint_compress.training.finetuning"}


def test_the_core_never_imports_an_exporter_by_name() -> None:
    assert not [one for one in importers("mint_exporters") if one.startswith("mint_compress")]
    assert not [one for one in importers("onnxruntime") if one.startswith("mint_compress")]


def test_estimators_know_no_network() -> None:
    for path in (PACKAGE / "estimators").glob("*.py"):
        assert internal(path) <= {"errors", "counting", "estimators"}, path.name
        assert "torch.nn" not in _modules(path), path.name


def test_planning_knows_no_module() -> None:
    assert "torch.nn" not in _modules(PACKAGE / "planning.py")


def _modules(path: Path) -> set[str]:
    found = set()
    for one in imports(path):
        found |= {one.module, *(f"{one.module}.{each}" for each in one.names)}
    return found


def test_importance_is_a_leaf() -> None:
    assert not [path.name for path in CORE if "importance" in internal(path)]


def test_optional_and_heavy_packages_are_imported_where_they_are_used() -> None:
    top = {
        (name(path), one.module)
        for path in FILES
        for one in imports(path)
        if one.at_top and not one.for_types
    }
    assert not [(where, what) for where, what in top if what.split(".")[0] in HEAVY]


def test_what_the_command_needs_to_refuse_bad_input_is_light() -> None:
    light = {"__init__", "errors", "options", "arguments", "reporting", "cli"}
    for path in FILES:
        if path.parent == PACKAGE and path.stem in light:
            top = {one.module.split(".")[0] for one in imports(path) if one.at_top and not one.for_types}
            assert not top & {"torch", "numpy", "rich", "torch_pruning"}, path.name
            before = {
                part(one.module)
                for one in imports(path)
                if one.at_top and not one.for_types
                if one.module.startswith("mint_compress.")
            }
            assert before <= light, path.name


def test_only_the_command_writes_to_the_terminal() -> None:
    for path in FILES:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {ast.unparse(call) for call in calls}
        if path.name != "cli.py":
            assert not names & {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}, path.name
        assert "print" not in names, path.name
    assert importers("click") == {"mint_compress.cli.app", "mint_compress.cli.options"}
    assert importers("rich") <= {f"mint_compress.{one}" for one in ("cli", "reporting", "inspecting")}


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


def test_the_document_has_every_module_in_order_and_in_its_own_words() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    said = re.findall(r"^ *- `([\w.]+)`: (.+(?:\n +[^- ].*)*)", page, re.MULTILINE)
    estimators = sorted(path.stem for path in (PACKAGE / "estimators").glob("[!_]*.py"))
    wanted = list(ORDER)
    after = wanted.index("estimators") + 1
    wanted[after:after] = [f"estimators.{name}" for name in estimators]
    wanted += ["mint_exporters.onnx", "mint_exporters.onnx_attention"]
    assert [name for name, _ in said] == wanted
    for name, words in said:
        whole = name if name.startswith("mint_exporters.") else f"mint_compress.{name}"
        docstring = import_module(whole).__doc__
        assert " ".join(words.split()) == (docstring or "").splitlines()[0], name


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
