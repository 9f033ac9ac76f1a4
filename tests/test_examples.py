"""The examples run as a reader would run them, made small."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mint_compress import zoo

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUICK = ["--epochs", "1", "--images", "32", "--device", "cpu"]


def test_the_vgg16_script_writes_a_checkpoint_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("train_vgg16_digits")
    out = tmp_path / "demo" / "vgg16.pt"
    assert script.main([str(out), *QUICK]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("digits: 1,295 train")
    assert printed[-1].startswith(f"{out}: accuracy ")
    assert printed[-1].endswith(f"on 32 test images, {out.stat().st_size / 1e6:.1f} MB")
    assert [p.name for p in out.parent.iterdir()] == ["vgg16.pt"]

    found = torch.load(out, weights_only=True)
    assert found["arch"] == "vgg16_cifar"
    assert found["settings"] == {"epochs": 1, "seed": 0, "images": 32}
    model = zoo.BUILDERS[found["arch"]](num_classes=10)
    model.load_state_dict(found["state_dict"])

    written = out.stat().st_mtime_ns
    assert script.main([str(out), *QUICK]) == 0
    assert "is there already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == written

    assert script.main([str(out), *QUICK, "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {out} is there, and not from these settings.")
    out.write_bytes(b"something else")
    assert script.main([str(out), *QUICK]) == 2
    assert out.read_bytes() == b"something else"


def small_network() -> nn.Module:
    first, second = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 12, 3)
    layers = first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 10))


def test_the_recipe_for_cifar10_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("train_vgg16_cifar10")
    monkeypatch.setattr(script, "BATCH", 16)
    monkeypatch.setattr(script, "PIECE", 8)
    monkeypatch.setattr(script, "BUILDERS", {script.ARCH: small_network})
    drawn = np.random.default_rng(0)
    data = tmp_path / "cifar10.npz"
    sizes = {"train": 40, "test": 20}
    pixels = {f"x_{s}": drawn.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for s, n in sizes.items()}
    np.savez(data, **pixels, **{f"y_{s}": np.arange(n) % 10 for s, n in sizes.items()})
    asked = ["--data", str(data), "--epochs", "2"]

    whole = CliRunner().invoke(script.main, [str(tmp_path / "whole.pt"), *asked])
    assert whole.exit_code == 0, whole.output
    assert re.search(r"whole.pt: 40 images, 2 epochs, test \d+\.\d\d%", whole.output)

    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.click, "echo", interrupted)
        with pytest.raises(click.Abort):
            script.main([str(tmp_path / "parts.pt"), *asked], standalone_mode=False)
    assert (tmp_path / "parts.training").exists()
    other = CliRunner().invoke(script.main, [str(tmp_path / "parts.pt"), *asked, "--hidden", "0"])
    assert other.exit_code == 1 and "'hidden': 12" in other.output and "'hidden': 0" in other.output
    rest = CliRunner().invoke(script.main, [str(tmp_path / "parts.pt"), *asked])
    assert [line.split(":")[0] for line in rest.output.splitlines()][:1] == ["epoch 2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar10.npz", "parts.pt", "whole.pt"]

    one, other = (torch.load(tmp_path / name)["state_dict"] for name in ("whole.pt", "parts.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for weight in one.values():
        if weight.ndim == 4:  # filters keep their norm
            assert float(weight.norm()) == pytest.approx(len(weight) ** 0.5, rel=1e-5)


def test_a_square_of_each_image_is_hidden() -> None:
    script = load("train_vgg16_cifar10")
    images = torch.ones(200, 3, 32, 32)
    left = script.without_square(images, 12, torch.Generator().manual_seed(0)) == 1
    assert bool((left == left[:, :1]).all())  # of all colours
    rows, columns = ((~left[:, 0]).any(dim).sum(1) for dim in (2, 1))
    assert torch.equal((~left[:, 0]).sum((1, 2)), rows * columns)  # a rectangle
    # centres anywhere: sides from 6 on, where the square passes the border, to 12
    assert {int(rows.min()), int(columns.min())} == {6} and {int(rows.max()), int(columns.max())} == {12}


def test_the_results_page_is_what_table_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    page = load("tables").write(EXAMPLES / "results", tmp_path / "results.md")
    assert page.read_text() == (EXAMPLES.parent / "docs" / "results.md").read_text()


def test_the_picture_of_the_readme_shows_the_rows(tmp_path: Path) -> None:
    script = load("picture")
    CliRunner().invoke(script.main, ["--output", str(tmp_path)], catch_exceptions=False)
    _, curves = script.points(EXAMPLES / "results" / "cifar10_vgg16.json")
    page = (EXAMPLES.parent / "docs" / "results.md").read_text()
    for line in curves.values():
        assert len(line) == 3
        for removed, accuracy in line:
            assert f"| {removed:.2f}% |" in page and f" | {accuracy:.2f} |" in page
    for theme in ("light", "dark"):
        drawn, kept = (
            re.findall("<text[^>]*>([^<]+)</text>", (folder / f"accuracy-{theme}.svg").read_text())
            for folder in (tmp_path, EXAMPLES.parent / "docs" / "images")
        )
        assert drawn == kept and {f"{accuracy:.2f}" for _, accuracy in curves["mint-compress"]} <= set(kept)


@pytest.mark.slow
def test_the_vgg16_script_reaches_its_accuracy(tmp_path: Path) -> None:
    script = load("train_vgg16_digits")
    out = tmp_path / "vgg16.pt"
    assert script.main([str(out)]) == 0
    assert torch.load(out, weights_only=True)["accuracy"] >= 0.986


# ---------------------------------------------------------------- the experiments


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """scikit-learn's digits at MNIST's size."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (np.kron(digits.images, np.ones((1, 3, 3))) * 15.9).astype(np.uint8)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    path = tmp_path / "digits.npz"
    train, test = slice(0, 400), slice(400, 600)
    labels = digits.target
    np.savez(path, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
    return path


def test_an_experiment_runs_and_goes_on_where_it_stopped(
    tmp_path: Path, small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("mnist_mlp")
    main = script.commands(script.EXPERIMENT)
    weights, results = tmp_path / "weights", tmp_path / "results" / "mnist_mlp.json"
    common = ["--data", str(small_mnist), "--weights", str(weights), "--device", "cpu", "--seeds", "2"]

    def run(*arguments: str) -> str:
        answer = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert answer.exit_code == 0, answer.output
        return answer.output

    run("train", *common, "--epochs", "2")
    assert sorted(p.name for p in weights.iterdir()) == ["mnist_mlp-0.pt", "mnist_mlp-1.pt"]
    assert run("train", *common).count(" is there\n") == 2

    some = ["--results", str(results), "--epochs", "1", "--ratio", "0.9"]
    only = ["--only", "gaussian, backward", "--only", "Taylor", "--only", "BatchNorm scale"]
    run("compress", *common, *some, *only[:2])
    first = json.loads(results.read_text())["rows"]
    assert len(first) == 2 * (2 + 3)  # two allocations untrained; trained: one each, and one without repair
    assert run("compress", *common, *some, *only).startswith("10 of 22 rows are there\n")
    rows = json.loads(results.read_text())["rows"]
    assert rows[:10] == first
    assert {row["criterion"] for row in rows} == {"gaussian, backward", "Taylor"}  # no BatchNorm here
    for row in rows:
        assert 0.9 <= row["removed"] < 0.92 and row["parameters"][0] == 545810
        assert ("repaired" in row["accuracy"]) == row["repair"]
        assert ("finetuned" in row["accuracy"]) == bool(row["epochs"])
        one, two = row["widths"]["layers.0"], row["widths"]["layers.2"]
        assert row["parameters"][1] == 785 * one + (one + 1) * two + (two + 1) * 10
    same = {(*row["widths"].items(),) for row in rows if row["allocation"] == "uniform"}
    assert len(same) == 1  # every criterion gets the same shape

    page = tmp_path / "docs" / "results.md"
    run("table", "--results", str(results.parent), "--output", str(page))
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| Taylor | uniform | yes |") for line in lines) == 2
    assert all(line.endswith("| 2 |") for line in lines if line.startswith("| Taylor"))
    assert "| MINT (masked) | 87.2 % | 98.54 |" in lines


def test_a_residual_network_is_compressed_from_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs instead of grey images, BatchNorm, and ``--weights`` that is a file."""
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("cifar10_resnet20")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (160, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(160) % 10
    data, weights = tmp_path / "photographs.npz", tmp_path / "resnet20.pt"
    np.savez(data, x_train=images[:128], y_train=labels[:128], x_test=images[128:], y_test=labels[128:])
    torch.manual_seed(0)
    torch.save(zoo.BUILDERS["resnet20_cifar"]().state_dict(), weights)

    results = tmp_path / "cifar10_resnet20.json"
    arguments = ["--data", str(data), "--weights", str(weights), "--device", "cpu", "--results", str(results)]
    some = ["--epochs", "1", "--ratio", "0.5", "--only", "BatchNorm scale"]
    main = script.commands(script.EXPERIMENT)
    CliRunner().invoke(main, ["compress", *arguments, *some], catch_exceptions=False)
    rows = json.loads(results.read_text())["rows"]
    assert [(row["allocation"], row["epochs"]) for row in rows] == [
        ("uniform", 0),
        ("global", 0),
        ("uniform", 1),
    ]
    for row in rows:
        assert row["parameters"][0] == 269722 and 0.5 <= row["removed"] < 0.52
        assert row["parameters"][1] == round(269722 * (1 - row["removed"]))

    ours = ["compress", *arguments, "--epochs", "0", "--ratio", "0.5", "--only", "gaussian, backward"]
    CliRunner().invoke(main, ours, catch_exceptions=False)
    uniform, _, equal = json.loads(results.read_text())["rows"][3:]
    assert (equal["allocation"], uniform["allocation"]) == ("global, MACs of uniform", "uniform")
    assert equal["macs"][1] <= uniform["macs"][1] and equal["parameters"][1] <= 0.5 * 269722
    assert equal["widths"] != uniform["widths"]

    content = json.loads(results.read_text())
    content["rows"][0]["accuracy"]["original"] += 0.5
    results.write_text(json.dumps(content))
    refused = CliRunner().invoke(main, ["compress", *arguments, "--epochs", "0", "--only", "random"])
    assert refused.exit_code == 1 and "Give another file with --results" in refused.output


@pytest.mark.slow
def test_two_processes_train_and_compress_as_one_does(tmp_path: Path, small_mnist: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = [sys.executable]

    def run(start: list[str], *arguments: str) -> str:
        done = subprocess.run(
            [*start, str(EXAMPLES / "mnist_mlp_inputs.py"), *arguments, "--device", "cpu", "--seeds", "1"],
            check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return done.stdout

    weights, rows = [], []
    for name, start in (("two", launch), ("one", alone)):
        common = ["--data", str(small_mnist), "--weights", str(tmp_path / name)]
        assert run(start, "train", *common, "--epochs", "3").count("test ") == 1  # one of them speaks
        (file,) = (tmp_path / name).iterdir()
        weights.append(torch.load(file, weights_only=True)["state_dict"])
        results = tmp_path / f"{name}.json"
        some = ["--ratio", "0.9", "--epochs", "1", "--only", "gaussian, backward", "--results", str(results)]
        run(start, "compress", *common, *some)
        rows.append([row["accuracy"] for row in json.loads(results.read_text())["rows"]])
    for key, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][key], atol=1e-5, rtol=0)
    assert len(rows[0]) == len(rows[1]) == 5
    for two, one in zip(*rows, strict=True):
        assert two == pytest.approx(one, abs=0.02)
