import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from commands import LISTENS

import mint_compress
from mint_compress.cli.app import main
from mint_compress.errors import CheckFailed, MintError
from mint_compress.reporting import Report
from mint_compress.settings import Benchmark, Settings

PACKAGE = Path(next(iter(mint_compress.__path__)))
REPORT = Report(model="model.pt", sha256={"small.onnx": "ab"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINT_COMPRESS_DEBUG", raising=False)
    (tmp_path / "model.pt").write_bytes(b"not looked at")
    return tmp_path


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a function in the place of ``compress``: these tests are about what stands around it."""

    def put(function: Callable[..., Any], module: str = "compression", name: str = "compress") -> None:
        stand_in = ModuleType(f"mint_compress.{module}")
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)

    return put


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def error(*args: str) -> str:
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.strip()


# Bad input


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("absent.pt --ratio 0.5 -o out.onnx", "No such model file: 'absent.pt'. Check the path."),
        (". --ratio 0.5 -o out.onnx", "The model '.' is not a regular file. Give the file itself."),
        ("model.pt --ratio 1.5 -o out.onnx", "ratio must lie between 0 and 1, not 1.5."),
        ("model.pt --ratio 0 -o out.onnx", "ratio must lie between 0 and 1, not 0.0."),
        ("model.pt --ratio nan -o out.onnx", "ratio must lie between 0 and 1, not nan."),
        ("model.pt --ratio much -o out.onnx", "Invalid value for '--ratio': 'much' is not a valid float."),
        ("model.pt -o out.onnx", "No ratio given."),
        ("model.pt --ratio 0.5", "No output given."),
        ("model.pt --ratio 0.5 -o out", "Output 'out' has no suffix."),
        ("model.pt --ratio 0.5 -o none/out.onnx", "Output folder 'none' does not exist."),
        ("model.pt --ratio 0.5 -o model.pt --force", "Output 'model.pt' is the model itself."),
        (
            "model.pt --ratio 0.5 -o out.onnx --estimator gim",
            "Unknown estimator 'gim'. Choose from: ",
        ),
        (
            "model.pt --ratio 0.5 -o out.onnx --cost x",
            "Unknown cost 'x'. Choose from: params, macs, both, latency.",
        ),
        ("model.pt --ratio 0.5 -o out.onnx --device tpu", "Unknown device 'tpu'. Choose from:"),
        ("model.pt --ratio 0.5 -o out.onnx --data gone/", "No such data: 'gone/'."),
        (
            "model.pt --ratio 0.5 -o out.onnx --epochs -1",
            "epochs must be a whole number, at least 0,",
        ),
        (
            "model.pt --ratio 0.5 -o out.onnx --input-shape 3x32",
            "Invalid value for '--input-shape': '3x32'",
        ),
        ("model.pt --ratio 0.5 -o out.onnx --mean .1,a,.3", "Invalid value for '--mean': '.1,a,.3'"),
        ("model.pt --ratio 0.5 -o out.onnx --bogus", "No such option"),
        ("model.pt other.pt --ratio 0.5 -o out.onnx", "Got unexpected extra argument"),
        ("model.pt --ratio", "Option '--ratio' requires an argument."),
        ("--ratio 0.5 -o out.onnx", "Missing argument 'MODEL'."),
        ("compress", "Missing argument 'MODEL'."),
        ("inspect", "Missing argument 'MODEL'."),
        ("inspect absent.pt", "No such model file: 'absent.pt'. Check the path."),
        ("inspect model.pt --upper-limit 1.5", "upper-limit must lie between 0 and 1, not 1.5."),
        ("inspect model.pt --round-to 0", "round-to must be a whole number, at least 1, not 0."),
        ("inspect model.pt --input-shape 3,-2", "input-shape must be positive whole numbers"),
        ("inspect model.pt --ratio 0.5", "No such option"),
        ("bench", "Missing argument 'A.onnx B.xml ...'."),
        ("bench model.pt absent.onnx", "No such model file: 'absent.onnx'."),
        ("bench model.pt model.pt --seconds 0", "seconds must be a positive number, not 0.0."),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder: Path, args: str, message: str) -> None:
    assert error(*args.split()).startswith(f"Error: {message}")
    assert [path.name for path in folder.iterdir()] == ["model.pt"]


def test_an_existing_output_needs_force(folder: Path) -> None:
    (folder / "out.json").write_text("mine")
    said = error("model.pt", "--ratio", "0.5", "-o", "out.onnx")
    assert said.startswith("Error: 'out.json' exists already.") and "--force" in said
    assert (folder / "out.json").read_text() == "mine"


@pytest.mark.parametrize("quiet", [[], ["--quiet"], ["--json"]])
def test_the_installed_command_answers_bad_input_fast(folder: Path, quiet: list[str]) -> None:
    command = [sys.executable, "-c", "from mint_compress.cli.app import main; main()", "absent.pt", *quiet]
    done = subprocess.run([*command, "--ratio", "0.5", "-o", "out.onnx"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "Error: No such model file: 'absent.pt'. Check the path.\n"


# What reaches compress()


@pytest.fixture
def seen(stage: Callable[..., None]) -> dict[str, Any]:
    """What compress was called with."""
    arguments: dict[str, Any] = {}

    def compress(model: object, data: object, **given: Any) -> tuple[None, Report]:
        arguments.update(given, model=model, data=data)
        return None, REPORT

    stage(compress)
    return arguments


def test_defaults_are_those_of_the_library(folder: Path, seen: dict[str, Any]) -> None:
    assert invoke("model.pt", "--ratio", "0.75", "-o", "out.onnx").exit_code == 0
    assert callable(seen.pop("progress"))
    assert seen == {
        **{"model": Path("model.pt"), "data": None, "plan": None, "output": Path("out.onnx")},
        **{"settings": Settings.of(ratio=0.75), "dry_run": False, "force": False, "resume": False},
        "command": "mint-compress model.pt --ratio 0.75 -o out.onnx",
    }


def test_a_share_of_macs_reaches_compress(folder: Path, seen: dict[str, Any]) -> None:
    assert invoke("model.pt", "--macs-ratio", ".4", "-o", "out.onnx").exit_code == 0
    assert seen["settings"] == Settings.of(macs_ratio=0.4)


def test_a_speed_reaches_compress(folder: Path, seen: dict[str, Any]) -> None:
    assert invoke("model.pt", "--speedup", "2", "--latency", "3.5", "-o", "out.onnx").exit_code == 0
    assert seen["settings"] == Settings.of(speedup=2.0, latency=3.5)


@pytest.mark.parametrize("name", ["--blocks", "--groups"])
def test_every_option_reaches_compress(folder: Path, seen: dict[str, Any], name: str) -> None:
    args = (
        "compress model.pt --plan model.pt -o out.onnx --data digits --arch vgg16_bn --input-shape 3,32,32 "
        "--mean -.1,.2,.3 --std .4,.5,.6 --ignore a* --ignore b --trust mine --estimator gmi "
        "--weights ema --task segmentation --loss a.b:c --metric a:d --heal-epochs 3 "
        f"--prune-inputs c --prune-inputs d* {name} 4 "
        "--calibration-images 64 --samples-per-class 9 --upper-limit .8 --round-to 1 --cost macs "
        "--no-compensate --no-distill --epochs 0 --lr .01 --batch-size 7 --device cpu --provider cpu "
        "--threads 2 --bench-batch 3 --bench-seconds .5 --seed 11 --dry-run --force --no-augment "
        "--dynamic-size --int8 --fp16 --export-part a.b --resume --workers 3 --max-drop 1"
    )
    assert invoke(*args.split()).exit_code == 0
    expected: dict[str, Any] = {
        **{"ratio": None, "macs_ratio": None, "arch": "vgg16_bn", "input_shape": (3, 32, 32)},
        **{"mean": (-0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "ignore": ("a*", "b"), "trust": ("mine",)},
        **{"prune_inputs": ("c", "d*"), "weights": "ema"},
        **{"task": "segmentation", "loss": "a.b:c", "metric": "a:d"},
        **{"heal_epochs": 3, "heal_minutes": None},
        **{"estimator": "gmi", "blocks": 4, "calibration_images": 64, "samples_per_class": 9},
        **{"upper_limit": 0.8, "round_to": 1, "cost": "macs", "compensate": False, "distill": False},
        **{"epochs": 0, "lr": 0.01, "batch_size": 7, "device": "cpu", "provider": "cpu", "threads": 2},
        **{
            "dynamic_size": True,
            "int8": True,
            "fp16": True,
            "export_part": "a.b",
            "bench_batch": 3,
            "bench_seconds": 0.5,
            "seed": 11,
            "augment": False,
        },
        **{"workers": 3, "speedup": None, "latency": None, "max_drop": 1.0},
    }
    assert seen["settings"].flat() == expected
    assert (seen["data"], seen["plan"]) == ("digits", Path("model.pt"))
    assert seen["dry_run"] and seen["force"] and seen["resume"]


def test_the_papers_word_is_no_option_of_the_help(folder: Path) -> None:
    assert "--blocks G" in invoke("--help").stdout and "--groups" not in invoke("--help").stdout


# What is printed


def test_the_report_goes_to_stdout_and_the_stages_to_stderr(folder: Path, stage: Callable[..., None]) -> None:
    def compress(*_: object, progress: Callable[[str, int, int], None], **__: object) -> tuple[None, Report]:
        for done in range(3):
            progress("Scoring", done, 2)
        print("a builder that prints")
        return None, REPORT

    stage(compress)
    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx")
    assert result.exit_code == 0
    assert result.stdout == str(REPORT)
    assert result.stderr.splitlines() == ["load PyTorch ...", "Scoring ...", "a builder that prints"]

    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx", "--json")
    assert json.loads(result.stdout) == REPORT.to_dict()
    assert "Scoring ..." in result.stderr

    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")

    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx", "--quiet", "--json")
    assert json.loads(result.stdout) == REPORT.to_dict() and result.stderr == ""


def test_our_warnings_are_printed_and_those_of_others_are_not(
    folder: Path, stage: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compress(*_: object, **__: object) -> tuple[None, Report]:
        logging.getLogger("mint_compress.data.specs").warning("near chance:\nlabels?")
        logging.getLogger("torch.onnx").warning("theirs")
        logging.getLogger("somebody").warning("theirs")
        warnings.warn("theirs", stacklevel=1)
        return None, REPORT

    stage(compress)
    levels = logging.getLogger("torch").level
    handlers = [list(logging.getLogger(name).handlers) for name in (None, "mint_compress")]
    command = ["model.pt", "--ratio", "0.5", "-o", "out.onnx"]
    result = invoke(*command)
    assert result.stderr.splitlines() == ["load PyTorch ...", "Warning: near chance: labels?"]
    assert invoke(*command, "--quiet").stderr == ""
    # everything is as it was
    assert logging.getLogger("torch").level == levels
    assert [list(logging.getLogger(name).handlers) for name in (None, "mint_compress")] == handlers


def test_bench_passes_its_settings_and_prints_the_result(folder: Path, stage: Callable[..., None]) -> None:
    from mint_compress.exporting.comparison import Comparison, TimedExport
    from mint_compress.reporting.records import Latency

    one = TimedExport("model.pt", 1000, "CPU", Latency(8.0, 9.0, None, 50), 1.0)
    answer = Comparison((one, TimedExport("./model.pt", 500, "CPU", Latency(2.0, 3.0, None, 50), 4.0)))
    seen: list[Any] = []

    def compare_files(paths: tuple[Path, ...], how: Benchmark, **given: Any) -> Comparison:
        seen[:] = [paths, how, given]
        return answer

    stage(compare_files, "exporting.comparison", "compare_files")
    settings = "--provider cpu --batch 4 --seconds 2 --threads 3 --input-shape 1,8,8 --seed 5"
    result = invoke("bench", "model.pt", "./model.pt", "model.pt", *settings.split())
    assert (result.exit_code, result.stdout) == (0, f"{answer}\n")
    assert callable(seen[2].pop("progress"))
    how = Benchmark(provider="cpu", batch=4, seconds=2.0, threads=3)
    assert seen == [(Path("model.pt"),) * 3, how, {"input_shape": (1, 8, 8), "seed": 5}]

    read = json.loads(invoke("bench", "model.pt", "model.pt", "--json").stdout)
    first, second = read["exports"]
    assert first["latency_ms"] == {"median": 8.0, "p90": 9.0, "p99": None, "runs": 50}
    assert (second["path"], second["bytes"], second["speedup"]) == ("./model.pt", 500, 4.0)


def test_inspect_passes_its_settings_and_prints_the_result(folder: Path, stage: Callable[..., None]) -> None:
    from mint_compress.inspecting import InspectedGroup, Inspection

    group = InspectedGroup("conv1", 64, 8, 1728, ("conv1",), ("conv2",), True, None)
    answer = Inspection("model.pt", (3, 8, 8), 9000, 81, 0.9, 4, 0.5, 0.4, (group,), ("a note",))
    seen: list[Any] = []

    def inspect_model(model: Path, *, progress: Callable[[str, int, int], None], **given: Any) -> Inspection:
        progress("analyse", 0, 1)
        print("a builder that prints")
        seen[:] = [model, given]
        return answer

    stage(inspect_model, "inspecting", "inspect_model")
    assert invoke("inspect", "model.pt").exit_code == 0
    assert seen == [Path("model.pt"), {"settings": Settings()}]

    settings = "--arch a --input-shape 3,8,8 --ignore x* --ignore y --trust t --upper-limit .9 --round-to 4"
    settings += " --prune-inputs z --weights w"
    result = invoke("inspect", "model.pt", *settings.split())
    given: dict[str, Any] = {"arch": "a", "input_shape": (3, 8, 8), "ignore": ("x*", "y"), "trust": ("t",)}
    given |= {"upper_limit": 0.9, "round_to": 4, "prune_inputs": ("z",), "weights": "w"}
    assert seen[1] == {"settings": Settings.of(**given)}
    assert (result.exit_code, result.stdout) == (0, str(answer))
    assert result.stderr.splitlines() == ["load PyTorch ...", "analyse ...", "a builder that prints"]

    result = invoke("inspect", "model.pt", "--json", "--quiet")
    assert json.loads(result.stdout) == answer.to_dict() and result.stderr == ""
    assert invoke("inspect", "model.pt", "--quiet").stdout == ""


# How it ends


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (MintError("The file\nis empty."), 2, "Error: The file is empty."),
        (CheckFailed("Parity failed."), 1, "Error: Parity failed."),
        (
            KeyError("conv1"),
            1,
            "Error: KeyError: 'conv1' (unexpected; MINT_COMPRESS_DEBUG=1",
        ),
        (
            EOFError("early"),
            1,
            "Error: RuntimeError: EOFError: early (unexpected; MINT_COMPRESS_DEBUG=1",
        ),
        (MemoryError(), 1, "Error: MemoryError (unexpected; MINT_COMPRESS_DEBUG=1"),
        (OSError(28, "No space left on device"), 1, "Error: OSError: [Errno 28] No space left on device ("),
        (SystemExit(0), 2, "Error: a module of yours called sys.exit(0)"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
    ],
)
def test_every_failure_is_one_line_and_a_status(
    folder: Path, stage: Callable[..., None], failure: BaseException, status: int, line: str
) -> None:
    def compress(*_: object, **__: object) -> None:
        raise failure

    stage(compress)
    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx", "--quiet")
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1


def test_the_traceback_comes_on_request(
    folder: Path, stage: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compress(*_: object, **__: object) -> None:
        raise KeyError("conv1")

    stage(compress)
    monkeypatch.setenv("MINT_COMPRESS_DEBUG", "1")
    result = invoke("model.pt", "--ratio", "0.5", "-o", "out.onnx")
    assert result.exit_code == 1
    assert "Traceback (most recent call last):" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: KeyError: 'conv1'")


SLOW = """
import sys, time, types
stand_in = types.ModuleType("mint_compress.compression")
def compress(*args, progress, **given):
    for done in range(600):
        progress("Scoring", done, 600)
        print("a builder that prints", flush=True) if done == 3 else None
        time.sleep(0.1)
stand_in.compress = compress
sys.modules[stand_in.__name__] = stand_in
from mint_compress.cli.app import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_130_one_line_and_no_file(folder: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW, "model.pt", "--ratio", "0.5", "-o", "out.onnx"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes, **LISTENS) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "load PyTorch ...\n"
        assert process.stderr.readline() == "Scoring ...\n"
        assert process.stderr.readline() == "a builder that prints\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "Interrupted; nothing was written.\n")
    assert [path.name for path in folder.iterdir()] == ["model.pt"]


def test_on_a_terminal_bars_are_drawn_and_cleared(folder: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a matter of Unix")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-c", SLOW, "model.pt", "--ratio", "0.5", "-o", "out.onnx"]
    streams = {"stdout": subprocess.PIPE, "stderr": theirs}
    with subprocess.Popen(command, env=environment, **streams, **LISTENS) as process:
        os.close(theirs)
        drawn = _read_terminal(ours, until=b"5/600")
        process.send_signal(signal.SIGINT)
        drawn += _read_terminal(ours, until=b"written.")
        out, _ = process.communicate(timeout=20)
    os.close(ours)
    assert b"Scoring" in drawn and b"5/600" in drawn
    assert b"a builder that prints" in drawn and out == b""
    assert process.returncode == 130
    # the bars' lines are erased before the last words
    last_words = drawn.index(b"Interrupted; nothing was written.")
    assert b"\x1b[2K" in drawn[drawn.rindex(b"/600") : last_words]


def _read_terminal(descriptor: int, *, until: bytes, seconds: float = 20.0) -> bytes:
    read, end = b"", time.monotonic() + seconds
    while until not in read and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            read += os.read(descriptor, 65536)
    return read


# Help


def test_help_shows_the_options_of_compress_by_section_and_the_other_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    sections = [line.rstrip(":") for line in lines if line.endswith(":") and line[0] != " "]
    assert sections == [
        *("Pruning", "Model", "Data", "Task", "Scoring", "Repair and fine-tuning", "Running", "Output"),
        *("Other", "Other commands"),
    ]
    assert result.stdout.startswith("Usage: mint-compress [compress] MODEL --ratio R -o OUT.onnx [options]")
    names = (
        "ratio data mean std arch input-shape ignore prune-inputs estimator calibration-images "
        "samples-per-class blocks upper-limit round-to cost no-compensate no-distill no-augment epochs lr "
        "batch-size device provider threads bench-batch bench-seconds seed dry-run plan json quiet force "
        "trust weights task loss metric heal-epochs heal-minutes dynamic-size int8 fp16 export-part workers "
        "version"
    )
    for name in names.split():
        assert f"--{name}" in result.stdout, name
    assert "  inspect MODEL  " in result.stdout and "bench A.onnx B.xml ..." in result.stdout
    assert invoke().stdout == result.stdout


def test_what_is_nearly_a_command_is_not_taken_for_a_model(folder: Path) -> None:
    said = invoke("inspec", "model.pt").stderr
    assert said == "Error: There is no command and no model file 'inspec'. Did you mean inspect?\n"
    (folder / "sweeps").touch()
    assert "Did you mean" not in invoke("sweeps", "--ratio", "0.5").stderr
    assert invoke("help").stdout == invoke("-h").stdout == invoke("--help").stdout


def test_help_of_each_command_and_the_version() -> None:
    assert (
        "Usage: mint-compress compress [OPTIONS] MODEL"
        in CliRunner().invoke(main, ["compress", "--help"], prog_name="mint-compress").stdout
    )
    assert "--seconds" in invoke("bench", "--help").stdout
    assert "--upper-limit" in invoke("inspect", "--help").stdout
    for args in (["--version"], ["model.pt", "--version"]):
        result = invoke(*args)
        assert result.exit_code == 0 and result.stdout.startswith("mint-compress, version ")


def test_a_file_named_like_a_command_is_given_with_its_folder(
    folder: Path, stage: Callable[..., None]
) -> None:
    seen: list[Path] = []

    def compress(model: Path, *_: object, **__: object) -> tuple[None, Report]:
        seen.append(model)
        return None, REPORT

    stage(compress)
    (folder / "bench").write_bytes(b"x")
    assert error("bench", "--ratio", "0.5", "-o", "out.onnx").startswith("Error: No such option")
    assert invoke("./bench", "--ratio", "0.5", "-o", "out.onnx").exit_code == 0
    assert seen == [Path("bench")]
