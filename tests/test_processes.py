"""One run shared by two processes, as a person starts it: what it gives, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_processes
from commands import good
from networks import build
from torch import Tensor
from toydata import task

from mint_compress import processes
from mint_compress.data.datasets import ArrayDataset
from mint_compress.training.finetuning import finetune_

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HERE = Path(__file__).parent
MODEL = "small.pt --arch networks:Chain --data quarters.npz --ratio 0.3 --round-to 1"
SUFFIXES = ("onnx", "verify.npz", "safetensors", "json", "html")
QUICK = "--epochs 2 --batch-size 32 --heal-epochs 1 --no-augment --bench-seconds 0.1 --device cpu"


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


@contextmanager
def started(folder: Path, line: str, *, module: bool = True) -> Iterator[subprocess.Popen[str]]:
    start = [*TWO, "-m", "mint_compress"] if module else TWO
    running = subprocess.Popen(
        [*start, *line.split()], cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.terminate()


def ended(folder: Path, line: str, *, module: bool = True) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    with started(folder, line, module=module) as running:
        out, said = running.communicate(timeout=250)
        return running.returncode, out, said


@pytest.fixture(scope="module")
def network() -> dict[str, Tensor]:
    """The weights of a small network that has learnt its task."""
    model = build("chain")
    finetune_(model, ArrayDataset(*task(300, seed=0)), epochs=10, lr=0.1, batch_size=20, device="cpu")
    return model.state_dict()


@pytest.fixture
def folder(network: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the network and its data."""
    torch.save(network, tmp_path / "small.pt")
    (x, y), (test_x, test_y) = task(300, seed=0), task(200, seed=1)
    np.savez(tmp_path / "quarters.npz", x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- who is who


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"PMI_RANK": "0", "PMI_SIZE": "4"}, (0, 4)),
        ({"RANK": "some", "WORLD_SIZE": "2"}, (0, 1)),
    ],
)
def test_launchers_say_by_variables_which_process_it_is(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pair in processes.RANKS:
        for name in pair:
            monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert processes.launched() == (0, 1)  # nobody to meet
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert processes.launched() == expected
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert processes.is_launch_of_one() is (expected[1] == 1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7, 128])
def test_shares_of_a_batch_are_all_of_it_or_nothing(size: int) -> None:
    for world in (1, 2, 3):
        for least in (0, 1, 2):
            taken = [list(processes.Share(rank, world, least).of(size)) for rank in range(world)]
            every = sorted(row for rows in taken for row in rows)
            assert every == (list(range(size)) if size >= least * world else [])
            assert not every or min(map(len, taken)) >= least


# ---- stages


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What two processes come to, who agree among themselves bit for bit."""
    folder = tmp_path_factory.mktemp("together")
    status, _, said = ended(folder, f"{HERE / 'two_processes.py'} {folder / 'results.pt'}", module=False)
    assert status == 0, said
    found: dict[str, list[Tensor]] = torch.load(folder / "results.pt")
    return found


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_come_to_what_one_does(case: str, together: dict[str, list[Tensor]]) -> None:
    # in float64; trainings in float32, and healing goes by what is missing of the variance in each part
    tolerance = {"calibrate": 1e-10, "repair": 1e-8, "finetune": 1e-5, "measure": 1e-10, "heal": 1e-2}
    alone = two_processes.CASES[case]()
    assert [t.shape for t in together[case]] == [t.shape for t in alone]
    for two, one in zip(together[case], alone, strict=True):
        scale = float(one.double().abs().max()) if one.numel() else 0.0
        torch.testing.assert_close(
            two.double(), one.double(), rtol=0, atol=tolerance[case.split()[0]] * scale
        )


# ---- the command


def tensors_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_command_writes_one_set_of_files_and_the_same_plan(folder: Path) -> None:
    status, out, said = ended(folder, f"{MODEL} {QUICK} -o two.onnx --json")
    assert status == 0, said
    two = json.loads(out)  # one report, and nothing beside it
    assert said.count("calibrate ...") == 1
    one: dict[str, Any] = good(f"{MODEL} {QUICK} -o one.onnx")
    assert {p.name for p in folder.iterdir()} == {
        *("small.pt", "quarters.npz"),
        *(f"{name}.{suffix}" for name in ("one", "two") for suffix in SUFFIXES),
    }
    for key in ("plan", "parameters", "macs", "layers"):
        assert two[key] == one[key], key
    assert "2 processes share the work" in two["notes"]
    assert two["quality"]["original"] > 0.9
    for stage in ("original", "pruned", "repaired"):
        assert two["quality"][stage] == one["quality"][stage]
    assert two["quality"]["finetuned"] == pytest.approx(one["quality"]["finetuned"], abs=0.01)


@pytest.mark.slow
def test_weights_after_the_repair_are_those_of_one_process(folder: Path) -> None:
    only = "--epochs 0 --heal-epochs 0 --bench-seconds 0.1 --device cpu"
    status, out, said = ended(folder, f"{MODEL} {only} -o two.onnx --quiet")
    assert (status, out) == (0, ""), said
    good(f"{MODEL} {only} -o one.onnx")
    two, one = tensors_of(folder / "two.safetensors"), tensors_of(folder / "one.safetensors")
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)


KEEPS_PIDS = """
import os, pathlib
from toydata import loaders

def kept():
    pathlib.Path("pid" + os.environ["RANK"]).write_text(str(os.getpid()))
    return loaders()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_where_a_process_is_killed_the_other_ends_and_nothing_is_left(folder: Path, rank: int) -> None:
    (folder / "keeping.py").write_text(KEEPS_PIDS)
    line = MODEL.replace("quarters.npz", "keeping:kept") + " --heal-epochs 100000 --device cpu -o out.onnx"
    with started(folder, line) as running:
        deadline = time.monotonic() + 100
        while not list(folder.glob(".out.onnx.resume/staging/original/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # somewhere in the middle
        pids = [int((folder / f"pid{n}").read_text()) for n in (0, 1)]
        os.kill(pids[rank], signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    assert running.returncode not in (0, None)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    # nothing, but for what --resume may go on from
    hidden = {path.name for path in folder.glob(".*")}
    assert hidden <= {".out.onnx.resume"} and not list(folder.glob("out*")), said
    assert not list(folder.glob(".*/staging")) and len(list(folder.glob(".*/state.json"))) == len(hidden)
    assert len([row for row in said.splitlines() if row.startswith(("Error:", "Interrupted"))]) == 1, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [(("quarters", "squares"), "No such data: 'squares.npz'"), (("0.3", "0.99"), "parameters cannot go")],
)
def test_bad_input_is_said_once(folder: Path, changed: tuple[str, str], words: str) -> None:
    """What is seen before PyTorch is loaded, and what is found when all have begun to share the work."""
    status, _, said = ended(folder, f"{MODEL.replace(*changed)} {QUICK} -o out.onnx")
    assert status != 0
    (error,) = [row for row in said.splitlines() if row.startswith("Error:")]
    assert words in error
    assert not list(folder.glob(".out*")) and not list(folder.glob("out*"))
