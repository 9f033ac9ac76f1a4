"""An interrupted run that is gone on from ends as one that was not disturbed; what it left is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from pickled import PickledExporter
from safetensors import safe_open
from torch import nn
from toydata import CLASSES, arrays

from mint_compress import MintError, Report, compress
from mint_compress.data.data import Data
from mint_compress.training.finetuning import finetune_

OPTIONS: dict[str, Any] = {
    "ratio": 0.4, "round_to": 1, "epochs": 3, "batch_size": 32, "heal_epochs": 2, "device": "cpu",
    "bench_seconds": 0.05,
}  # fmt: skip
OUTPUT = "small.pickled"
HIDDEN = f".{OUTPUT}.resume"
FILES = {OUTPUT, "small.verify.npz", "small.safetensors", "small.json", "small.html"}
GOES_ON = "What was computed is kept: the same command with --resume goes on where it was."


class Mixed(nn.Module):
    """Kernels of every kind, normalisation with statistics, and dropout, which draws from PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
            self.apart = nn.Conv2d(12, 12, 3, padding=1, groups=12)
            self.mixing, self.again = nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16)
            self.dropout, self.head = nn.Dropout(0.2), nn.Linear(16, CLASSES)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.apart(self.norm(self.first(x)).relu())
        y: torch.Tensor = self.head(self.dropout(self.again(self.mixing(x)).relu().mean((2, 3))))
        return y


@cache
def trained() -> dict[str, torch.Tensor]:
    """The weights of a network that has learnt the task."""
    model = Mixed()
    finetune_(model, arrays().train, epochs=15, lr=0.1, batch_size=16, device="cpu", seed=0)
    return model.state_dict()


def network() -> Mixed:
    model = Mixed()
    model.load_state_dict(trained())
    return model


class StoppedAt:
    """Stops a run as Ctrl-C does, once a stage has come so far; notes the stages that did something."""

    def __init__(self, stage: str = "", done: int = 0) -> None:
        self.stop, self.seen = (stage, done), list[str]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.seen += [stage] if stage not in self.seen else []
        if (stage, done) == self.stop:
            raise KeyboardInterrupt


def run(folder: Path, stop: StoppedAt | None = None, **more: Any) -> Report:
    given = {"data": arrays(), "progress": stop, **OPTIONS, **more}
    return compress(network(), given.pop("data"), output=folder / OUTPUT, **given)[1]


def interrupted(folder: Path, stage: str, done: int = 1, **more: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, StoppedAt(stage, done), **more)
    assert os.listdir(folder) == [HIDDEN]


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the result: neither how long it took nor where it lies."""
    timed = ("seconds", "latency_ms", "speedup", "sha256", "command")
    return {name: value for name, value in report.items() if name not in timed}


def weights(folder: Path) -> tuple[dict[str, str], dict[str, tuple[torch.dtype, bytes]]]:
    """Header and tensors, bit for bit; safetensors writes the header in any order."""
    with safe_open(folder / "small.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata(), {n: (t.dtype, t.numpy().tobytes()) for n, t in tensors.items()}


def assert_the_same(folder: Path, other: Path, files: set[str] = FILES) -> None:
    assert {*os.listdir(folder)} == {*os.listdir(other)} == files
    reports = [json.loads((one / "small.json").read_text()) for one in (folder, other)]
    assert told(reports[0]) == told(reports[1])
    assert reports[0]["seconds"].keys() == reports[1]["seconds"].keys()
    assert weights(folder) == weights(other)
    if "small.onnx" in files:
        assert (folder / "small.onnx").read_bytes() == (other / "small.onnx").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def exporter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mint_compress.exporting.protocol._installed", lambda: [PickledExporter()])
        yield


@pytest.fixture(scope="module")
def whole(exporter: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    report = run(folder)
    assert report.quality.finetuned is not None and any("healed" in note for note in report.notes)
    assert {*os.listdir(folder)} == FILES
    return folder


STAGES = {
    "calibrate": ("calibrate", 1, {"calibrate", "repair", "healing", "fine-tuning"}),
    "repair": ("repair", 1, {"repair", "healing", "fine-tuning"}),
    "healing": ("healing", 2, {"healing", "fine-tuning"}),
    "fine-tuning": ("fine-tuning", 6, {"fine-tuning"}),
    "export": ("export", 0, set[str]()),
    "benchmark": ("benchmark", 1, set[str]()),
}
"""Where a run is interrupted, and what is left to compute then."""


@pytest.mark.parametrize("case", STAGES)
def test_an_interrupted_run_ends_as_one_that_was_not_disturbed(
    case: str, whole: Path, tmp_path: Path
) -> None:
    stage, done, left = STAGES[case]
    if stage == "calibrate":  # nothing was computed yet
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, StoppedAt(stage, done))
        assert os.listdir(tmp_path) == []
    else:
        interrupted(tmp_path, stage, done)
    seen = StoppedAt()
    run(tmp_path, seen, resume=True)
    assert {one for one in seen.seen if one in ("calibrate", "repair", "healing", "fine-tuning")} == left
    assert_the_same(tmp_path, whole)


def test_fine_tuning_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    steps: list[int] = []
    interrupted(tmp_path, "fine-tuning", 9)  # the first of the third epoch: 120 images, 32 at a time

    def note(stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning":
            steps.append(done)

    compress(network(), arrays(), output=tmp_path / OUTPUT, resume=True, progress=note, **OPTIONS)
    assert steps == [9, 10, 11, 12]


def test_a_run_is_gone_on_from_as_often_as_it_is_interrupted(whole: Path, tmp_path: Path) -> None:
    interrupted(tmp_path, "repair")
    interrupted(tmp_path, "healing", 2, resume=True)
    interrupted(tmp_path, "fine-tuning", 6, resume=True)
    interrupted(tmp_path, "export", 0, resume=True)
    run(tmp_path, resume=True)
    assert_the_same(tmp_path, whole)


def test_a_training_that_was_undone_is_undone_again(tmp_path: Path) -> None:
    hard = {"lr": 5.0, "heal_epochs": 0, "distill": False}
    other = tmp_path / "other"
    other.mkdir()
    report = run(other, **hard)
    assert report.quality.finetuned is None and any("fine-tuning was undone" in n for n in report.notes)
    folder = tmp_path / "folder"
    folder.mkdir()
    interrupted(folder, "export", 0, **hard)
    run(folder, resume=True, **hard)
    assert_the_same(folder, other)


def test_a_healing_that_helped_is_taken_over(tmp_path: Path) -> None:
    one, other, alone = tmp_path / "one", tmp_path / "other", {"compensate": False, "heal_epochs": 8}
    for folder in (one, other):
        folder.mkdir()
    report = run(one, **alone)
    assert report.quality.repaired is None and report.quality.healed is not None
    interrupted(other, "fine-tuning", 1, **alone)
    assert (other / HIDDEN / "healing.safetensors").is_file()
    run(other, resume=True, **alone)
    assert_the_same(other, one)


def test_without_data_and_with_samples(tmp_path: Path) -> None:
    noise = {"data": None, "estimator": "mint", "samples_per_class": 20, "input_shape": (3, 6, 6)}
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    run(one, **noise)
    interrupted(other, "repair", **noise)
    run(other, resume=True, **noise)
    assert_the_same(other, one)


def test_a_dry_run_has_a_state_of_its_own(tmp_path: Path) -> None:
    interrupted(tmp_path, "repair")
    state = (tmp_path / HIDDEN / "state.json").read_bytes()
    seen = StoppedAt()
    run(tmp_path, seen, dry_run=True, resume=True)
    assert "calibrate" in seen.seen
    assert {*os.listdir(tmp_path)} == {"small.plan.json", HIDDEN}
    assert (tmp_path / HIDDEN / "state.json").read_bytes() == state


# Killed


KILLED = """
import os, signal, sys
from mint_compress.cli import app, terminal
from mint_compress.exporting import protocol
from pickled import PickledExporter

installed = protocol._installed
protocol._installed = lambda: [PickledExporter(), *installed()]
stage, done, say = sys.argv[1], int(sys.argv[2]), terminal._Log.__call__
del sys.argv[1:3]

def die(log, name, at, total):
    say(log, name, at, total)
    if (name, at) == (stage, done):
        os.kill(os.getpid(), signal.SIGKILL)

terminal._Log.__call__ = die
app.main()
"""
"""The command, which is killed once a stage has come so far."""
LINE = (
    "net.pt --arch test_resuming:Mixed --data toydata:loaders --ratio 0.4 --round-to 1 --epochs 3 --lr 0.05 "
    "--batch-size 32 --heal-epochs 2 --device cpu --bench-seconds 0.05 -o "
)


def command(folder: Path, more: str, killed: tuple[str, int] = ("", 0)) -> tuple[int, str]:
    """Status and stderr of the command, in a process of its own."""
    torch.save(trained(), folder / "net.pt")
    line = [sys.executable, "-c", KILLED, killed[0], str(killed[1]), *(LINE + more).split()]
    path = os.pathsep.join([*map(str, (Path(__file__).parent, Path(__file__).parents[1])), *sys.path])
    done = subprocess.run(
        line, cwd=folder, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": path}
    )
    return done.returncode, done.stderr


def test_a_command_killed_in_fine_tuning_goes_on(tmp_path: Path) -> None:
    status, said = command(tmp_path, OUTPUT, killed=("fine-tuning", 6))
    assert status == -signal.SIGKILL, said
    assert {*os.listdir(tmp_path)} == {"net.pt", HIDDEN}
    left = {*os.listdir(tmp_path / HIDDEN)}
    assert {"state.json", "scores.safetensors", "repair.safetensors", "fine-tuning.pt", "staging"} <= left
    status, said = command(tmp_path, f"{OUTPUT} --resume")
    assert status == 0, said
    assert f"{OUTPUT}: goes on from what an interrupted run left" in said and "calibrate" not in said
    assert {*os.listdir(tmp_path)} == {"net.pt", *FILES}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_command_killed_in_any_stage_goes_on(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert command(other, "small.onnx")[0] == 0
    (other / "net.pt").unlink()
    for number, place in enumerate(
        [("calibrate", 1), ("score", 1), ("repair", 1), ("healing", 2), ("fine-tuning", 6), ("export", 0)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        status, said = command(folder, "small.onnx", killed=place)
        assert status == -signal.SIGKILL, (place, said)
        assert {*os.listdir(folder)} == {"net.pt", ".small.onnx.resume"}, place
        status, said = command(folder, "small.onnx --resume")
        assert status == 0, said
        (folder / "net.pt").unlink()
        assert_the_same(folder, other, {"small.onnx", *FILES} - {OUTPUT})


# What is found of an earlier run


def test_a_run_begins_anew_without_resume_and_removes_what_was_left(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, "healing", 2)
    left = tmp_path / HIDDEN
    (left / "staging" / "original").mkdir(parents=True)
    (left / "staging" / OUTPUT).touch()
    (left / ".state.json.12345.tmp").touch()
    seen = StoppedAt()
    run(tmp_path, seen)
    assert "calibrate" in seen.seen
    said = f"{tmp_path / OUTPUT}: what an interrupted run left is removed, as --resume was not given"
    assert caplog.messages == [said]
    assert_the_same(tmp_path, whole)


def test_what_a_killed_run_was_about_to_write_is_removed_before_it_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path, "healing", 2)
    left = tmp_path / HIDDEN
    (left / "staging").mkdir()
    (left / "staging" / OUTPUT).touch()
    (left / ".state.json.12345.tmp").touch()
    interrupted(tmp_path, "healing", 2, resume=True)
    assert {*os.listdir(left)} == {"lock", "state.json", "scores.safetensors", "repair.safetensors"}


def test_with_nothing_to_resume_it_begins_and_says_so(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, resume=True)
    said = f"{tmp_path / OUTPUT}: no interrupted run to go on from, so this one begins at the beginning"
    assert caplog.messages == [said]
    assert_the_same(tmp_path, whole)


def test_bad_input_leaves_what_an_interrupted_run_kept(tmp_path: Path) -> None:
    interrupted(tmp_path, "healing", 2)
    before = {p.name: p.read_bytes() for p in (tmp_path / HIDDEN).iterdir()}
    with pytest.raises(MintError, match="matches no layer"):
        run(tmp_path, ignore="nowhere*")
    assert {p.name: p.read_bytes() for p in (tmp_path / HIDDEN).iterdir()} == before


def test_a_run_that_lives_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_compress.resuming.folder.WAIT", 0.1)
    interrupted(tmp_path, "healing", 2)
    before = {p.name: p.read_bytes() for p in (tmp_path / HIDDEN).iterdir()}
    with FileLock(tmp_path / HIDDEN / "lock"):
        for resume in (False, True):
            with pytest.raises(MintError, match=r"^Another run is writing .*small\.pickled\. Wait until"):
                run(tmp_path, resume=resume)
    assert {p.name: p.read_bytes() for p in (tmp_path / HIDDEN).iterdir()} == before


def test_files_that_a_killed_run_had_begun_to_put_in_place_are_replaced(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "small.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert {*os.listdir(tmp_path)} == {OUTPUT, "small.verify.npz", HIDDEN}
    with pytest.raises(MintError, match="exists already"):
        run(tmp_path)
    run(tmp_path, resume=True)
    assert_the_same(tmp_path, whole)


def test_what_is_in_the_way_is_not_replaced_by_a_run_that_had_not_come_so_far(tmp_path: Path) -> None:
    interrupted(tmp_path, "healing", 2)
    (tmp_path / "small.json").write_text("mine")
    with pytest.raises(MintError, match="exists already"):
        run(tmp_path, resume=True)
    assert (tmp_path / "small.json").read_text() == "mine"


# Refused


def fewer() -> Data:
    data = arrays()
    data.sizes = (119, 40, 80)
    return data


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ratio": 0.5}, "ratio 0.4, this one has 0.5"),
        ({"macs_ratio": 0.2}, "macs-ratio none, this one has 0.2"),
        ({"lr": 0.01}, "lr 0.05, this one has 0.01"),
        ({"seed": 1}, "seed 0, this one has 1"),
        ({"ignore": "first"}, 'ignore [], this one has ["first"]'),
        ({"distill": False}, "distill true, this one has false"),
        ({"data": None, "input_shape": (3, 6, 6)}, "data Data, this one has none"),
    ],
)
def test_other_settings_are_refused_by_name(left: Path, given: dict[str, Any], said: str) -> None:
    before = {p.name: p.read_bytes() for p in (left / HIDDEN).iterdir()}
    with pytest.raises(MintError) as caught:
        run(left, resume=True, **given)
    assert str(caught.value) == (
        f"The interrupted run had {said}. Give what it had, or begin anew without --resume."
    )
    assert caught.value.exit_code == 2
    assert {p.name: p.read_bytes() for p in (left / HIDDEN).iterdir()} == before


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A folder in which a run was interrupted after the repair, and after an epoch of training."""
    interrupted(tmp_path, "fine-tuning", 5)
    return tmp_path


def test_another_network_and_other_data_are_refused(left: Path) -> None:
    other = network()
    with torch.no_grad():
        other.head.bias.add_(1e-6)
    with pytest.raises(MintError, match=r"had model Mixed sha256:\w{16}, this one has Mixed sha256:\w{16}\."):
        compress(other, arrays(), output=left / OUTPUT, resume=True, **OPTIONS)


def test_how_it_is_timed_may_change(left: Path) -> None:
    report = run(left, resume=True, bench_seconds=0.06, bench_batch=2)
    assert report.settings["bench_batch"] == 2


@pytest.mark.parametrize("name", ["state.json", "scores.safetensors", "repair.safetensors"])
@pytest.mark.parametrize("how", ["a byte", "half"])
def test_a_damaged_state_is_refused(left: Path, name: str, how: str) -> None:
    path = left / HIDDEN / name
    content = bytearray(path.read_bytes())
    if how == "a byte":
        content[-40] ^= 1
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(MintError) as caught:
        run(left, resume=True)
    assert str(caught.value) == f"{path} is damaged. Leave --resume out to begin anew."
    assert path.read_bytes() == content


def test_a_missing_file_is_named(left: Path) -> None:
    (left / HIDDEN / "repair.safetensors").unlink()
    with pytest.raises(MintError, match=r"repair\.safetensors is missing\. Leave --resume out"):
        run(left, resume=True)


def test_a_damaged_training_is_refused(left: Path) -> None:
    path = left / HIDDEN / "fine-tuning.pt"
    content = bytearray(path.read_bytes())
    weight = torch.load(path)["model"]["mixing.weight"].numpy().tobytes()
    content[content.find(weight) + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(MintError, match=r"fine-tuning\.pt is no state of a training\. Delete it to begin"):
        run(left, resume=True)
    path.unlink()
    run(left, resume=True)


def test_a_state_of_another_version_is_refused(left: Path) -> None:
    path = left / HIDDEN / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2', 1))
    with pytest.raises(MintError, match=r"state\.json has format 2; this version reads 1\. Leave --resume"):
        run(left, resume=True)


def test_what_has_no_output_cannot_be_resumed() -> None:
    with pytest.raises(MintError, match=r"^To resume, name the output of the run that was interrupted"):
        compress(network(), arrays(), resume=True, **OPTIONS)


# Errors


def test_an_error_before_anything_is_computed_leaves_nothing(tmp_path: Path) -> None:
    for given in ({"ignore": "nowhere*"}, {"ratio": 0.99}, {"calibration_images": 500}):
        with pytest.raises(MintError) as caught:
            run(tmp_path, **given)
        assert os.listdir(tmp_path) == [] and not hasattr(caught.value, "__notes__")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: to a program, a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {
    "original": (200, f"{HIDDEN}/staging/original/{OUTPUT}", False, {}),
    "plan": (2_000, ".small.plan.json.resume/state.json", True, {"dry_run": True}),
    "training": (12_000, f"{HIDDEN}/fine-tuning.pt", True, {}),
}
"""How large files can get, what cannot be written then, whether anything is kept, and of which run."""


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    case: str, whole: Path, tmp_path: Path
) -> None:
    size, file, kept, more = FULL[case]
    with files_of_at_most(size), pytest.raises(MintError) as caught:
        run(tmp_path, **more)
    assert str(caught.value).startswith(f"Cannot write {tmp_path / file}: File too large.")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert getattr(caught.value, "__notes__", []) == ([GOES_ON] if kept else [])
    assert os.listdir(tmp_path) == ([file.split("/")[0]] if kept else [])
    if kept:
        assert not [p.name for p in (tmp_path / file).parent.iterdir() if p.suffix == ".tmp"]
    seen = StoppedAt()
    run(tmp_path, seen, resume=True, **more)
    assert ("calibrate" in seen.seen) != kept
    if more:
        assert os.listdir(tmp_path) == ["small.plan.json"]
    else:
        assert_the_same(tmp_path, whole)
