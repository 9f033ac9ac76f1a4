"""The README and the pages of docs/ say what is true: commands, Python, the table of options, links."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from networks import Chain, images
from toydata import arrays

import mint_compress
from mint_compress.cli.app import main
from mint_compress.cli.options import table as options_table
from mint_compress.reporting.records import ReceiptCounts

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]
ALL = "\n".join(PAGES.values())
QUICK_START = "mint-compress vgg16.pt --ratio 0.75 -o vgg16_small.onnx --data digits"
COMMANDS = re.findall(r"mint-compress [^`\n]*", re.sub(r"\\\n +", "", ALL))  # lines that go on, as one


def python(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


LIBRARY = [*python("README.md"), *python("docs/library.md")]


# Commands


def test_the_quick_start_is_what_make_demo_shows_and_runs() -> None:
    for page in ("README.md", "docs/get-started.md"):
        assert f"\n```\n{QUICK_START}\n```\n" in PAGES[page]
    demo = (ROOT / "Makefile").read_text().split("\ndemo:", 1)[1].split("\n\n", 1)[0]
    shown, run = [line for line in demo.splitlines() if QUICK_START in line]
    assert shown == f"\t@echo '$$ {QUICK_START}'"
    assert run.endswith(f" {QUICK_START} --force") and run.startswith("\t@cd demo && ")
    assert "examples/train_vgg16_digits.py demo/vgg16.pt" in demo


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+) +#", ALL)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_command_line_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = {line.partition(" > ")[0] for line in COMMANDS if ".onnx" in line}
    assert len(lines) > 12
    for line in lines:
        # the options are understood: what is missing is the model alone
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 2
        assert re.match(r"Error: No such (model|export) file: '[\w.-]+'", result.stderr), line


def test_the_extras_and_the_licence_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra for group in re.findall(r"\.\[([\w,]+)\]", ALL) for extra in group.split(",")}
    assert named == set(project["optional-dependencies"])
    assert project["license"] == "Apache-2.0" and "Apache-2.0." in README


def test_the_version_stands_in_one_place_and_has_its_heading_in_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mint_compress.__version__"}
    assert mint_compress.__version__ == version("mint-compress"), "install again: pip install -e ."
    released = re.findall(
        r"^## (\d[\w.]*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == mint_compress.__version__


def test_the_links_lead_somewhere() -> None:
    found = 0
    for name, text in PAGES.items():
        for link in re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
            place = "".join(link).partition("#")[0]
            if place and not place.startswith("http"):
                assert (ROOT / name).parent.joinpath(place).exists(), (name, place)
                found += 1
    assert found > 30


# Options


def test_the_table_of_options_is_made_from_the_settings() -> None:
    assert f"\n\n{options_table()}\n" in PAGES["docs/options.md"]


def test_every_option_that_the_text_names_is_one() -> None:
    commands = main.commands.values()  # type: ignore[attr-defined]
    known = {name for one in commands for p in one.params for name in (*p.opts, *p.secondary_opts)}
    # the page of results is checked against what writes it, and gives the options of the examples
    text = "\n".join(page for name, page in PAGES.items() if name != "docs/results.md")
    text = re.sub(r"^.*\bpython [\w/]+\.py.*$", "", text, flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    # pip's, torchrun's and accelerate's, and Docker's
    named -= {"--help", "--no-deps", "--nproc-per-node", "--multi", "--cpu"}
    named -= {"--rm", "--build-arg", "--cpus", "--target", "--user"}
    assert named <= known and len(named) > 30


# Python


def test_the_python_names_what_exists() -> None:
    assert len(LIBRARY) == 4
    for block in [block for page in PAGES for block in python(page)]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "mint_compress":
                assert all(alias.name in mint_compress.__all__ for alias in node.names)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("mint_compress", "mint")
            ):
                assert node.attr in mint_compress.__all__


def test_the_library_blocks_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two, with a small network under the file name that they give, and short stages."""
    from mint_compress.zoo import BUILDERS

    torch.save(BUILDERS["mlp"]().state_dict(), tmp_path / "vgg16.pt")
    monkeypatch.chdir(tmp_path)
    whole = mint_compress.compress

    def quick(*args: Any, **given: Any) -> Any:
        return whole(*args, **given, epochs=1, calibration_images=64, bench_seconds=0.1, device="cpu")

    monkeypatch.setattr(mint_compress, "compress", quick)
    names: dict[str, Any] = {}
    for block in LIBRARY[:2]:
        exec(compile(block, "docs/library.md", "exec"), names)
    report = json.loads((tmp_path / "vgg16_small.json").read_text())
    assert names["report"].to_dict() == report
    assert report["ratio"]["asked"] == 0.75 and report["quality"]["repaired"] is not None
    assert sum(p.numel() for p in names["model"].parameters()) == report["parameters"]["after"]


def test_the_block_of_stages_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Chain(32, 32).eval()
    names: dict[str, Any] = {"model": model, "example_inputs": images("chain")}
    names["batches"] = [arrays().calibration(64, seed=0)]
    exec(compile(LIBRARY[2], "docs/library.md", "exec"), names)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, names["small"]))
    assert after <= before / 2 and names["receipt"].counted == ReceiptCounts(after, None, after)
    assert names["parity"].max_rel < 1e-4 and (tmp_path / "small.onnx").is_file()


def test_the_importance_block_runs_as_printed() -> None:
    names: dict[str, Any] = {"model": Chain().eval(), "example_inputs": images("chain")}
    names["batches"] = [arrays().calibration(32, seed=0)]
    exec(compile(LIBRARY[3], "docs/library.md", "exec"), names)
    assert names["model"].conv1.out_channels == 3 and names["model"].fc.out_features == 4


# The whole quick start


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quick_start_on_a_trained_vgg16(tmp_path: Path) -> None:
    script = ROOT / "examples" / "train_vgg16_digits.py"
    subprocess.run([sys.executable, script, tmp_path / "vgg16.pt"], check=True, cwd=ROOT)
    command = [sys.executable, "-c", "from mint_compress.cli.app import main; main()"]
    done = subprocess.run(
        [*command, *shlex.split(QUICK_START)[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {
        "vgg16.pt",
        *(f"vgg16_small{suffix}" for suffix in (".onnx", ".verify.npz", ".safetensors", ".json", ".html")),
    }
    report = json.loads((tmp_path / "vgg16_small.json").read_text())
    assert 0.75 <= report["ratio"]["removed"] <= 0.77
    assert report["quality"]["original"] >= 0.986
    assert report["validation"]["compressed"] >= report["validation"]["original"] - 0.01
    assert report["speedup"] > 1
    said = [line.split()[0] for line in done.stdout.splitlines() if line[:1].strip()]
    assert "Parameters" in said and said[-1] == "Written"


# Reasons


def test_the_reasons_of_the_document_are_those_of_the_source_and_cover_what_was_seen() -> None:
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows)) > 25
    source = "".join(path.read_text() for path in (ROOT / "mint_compress").rglob("*.py"))
    source = source.replace('{}"', "").replace("its channels cannot be removed: ", "")
    for row in rows:
        assert row.removeprefix("its channels cannot be removed: ") in source, row
    lines = (ROOT / "benchmarks" / "results" / "coverage.jsonl").read_text().splitlines()
    seen = {reason for line in lines for reason in json.loads(line).get("reasons", {})}
    assert len(seen) > 10
    for reason in seen:
        assert any(row in reason for row in rows), reason
