"""What a wheel holds: the two packages and nothing else."""

import configparser
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mint_compress

ROOT = Path(__file__).parent.parent
FOLDERS = {"mint_compress": ROOT, "mint_exporters": ROOT / "exporters"}
"""Package -> where its folder lies in the repository."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "mint_compress", "exporters")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # a copy, because setuptools leaves build/ and *.egg-info in the folder it builds from
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([*_builder(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def _builder(target: Path) -> list[str]:
    """Offline where setuptools is at hand, else through pip, which fetches it."""
    if _setuptools() >= 77 and importlib.util.find_spec("build"):
        return [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    return [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target)]


def _setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def test_the_top_level_is_the_two_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    info = {name for name in top if name.endswith(".dist-info")}
    assert len(info) == 1
    assert top - info == {"mint_compress", "mint_exporters"}


def test_every_folder_with_source_is_a_package() -> None:
    """The packages are found by their __init__.py: a room without one would be left out."""
    folders = {path.parent for name, root in FOLDERS.items() for path in (root / name).rglob("*.py")}
    assert folders and not [folder for folder in folders if not (folder / "__init__.py").exists()]


PACKAGED = {
    f"mint_compress/{name}"
    for name in ("py.typed", "checkpoints/architectures.json", "reporting/page.html.jinja")
}


def test_every_source_file_is_in_it(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    for folder, root in FOLDERS.items():
        sources = {path.relative_to(root).as_posix() for path in (root / folder).rglob("*.py")}
        assert sources and sources <= inside
    assert inside >= PACKAGED


def test_metadata_names_the_licence_the_command_and_the_exporter(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"mint-compress": "mint_compress.cli.app:main"}
    assert dict(points["mint_compress.exporters"]) == {
        "onnx": "mint_exporters.onnx:OnnxExporter",
        "openvino": "mint_exporters.openvino:OpenVinoExporter",
        "executorch": "mint_exporters.executorch:ExecuTorchExporter",
    }


def test_the_two_runtimes_are_never_required_together(wheel: zipfile.ZipFile) -> None:
    from packaging.requirements import Requirement

    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    lines = wheel.read(f"{info}/METADATA").decode().splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    runtimes = [one for one in required if one.name.startswith("onnxruntime")]
    assert len(runtimes) == 2
    machines = [
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("win32", "AMD64"),
        ("win32", "ARM64"),
    ]
    for system, machine in machines:
        here = {"sys_platform": system, "platform_machine": machine, "extra": ""}
        chosen = [one.name for one in runtimes if one.marker is not None and one.marker.evaluate(here)]
        gpu = (system, machine) in {("linux", "x86_64"), ("win32", "AMD64")}
        assert chosen == ["onnxruntime-gpu" if gpu else "onnxruntime"]


# The package without the script


def module(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mint_compress", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_module_is_the_command() -> None:
    done = module("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"mint-compress, version {mint_compress.__version__}\n"
    usage = module("bench", "--help").stdout.splitlines()[0]
    assert usage == "Usage: mint-compress bench [OPTIONS] A.onnx B.xml ..."


def test_the_module_refuses_bad_input_as_the_command_does() -> None:
    done = module("absent.pt", "--ratio", "0.5", "-o", "out.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: No such model file: 'absent.pt'. Check the path.\n"
