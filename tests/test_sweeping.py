"""A grid of compressions: every combination once, kept across runs, written as CSV, JSON and SVG."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke, refused
from networks import Chain
from torch import nn

from mint_compress import MintError, compress
from mint_compress.sweeping import sweep, table

SETTINGS: dict[str, Any] = {"round_to": 1, "epochs": 0, "calibration_images": 32, "device": "cpu"}
DATA = "toydata:loaders"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Chain(16, 16)


def test_rows_are_what_compress_gives_and_are_kept(model: nn.Module, tmp_path: Path) -> None:
    grid, made = {"ratio": (0.3, 0.5), "upper_limit": (0.5, 0.9)}, []
    rows = sweep(model, DATA, grid, tmp_path / "out.csv", done=made.append, **SETTINGS)
    assert rows == made and len(rows) == 4
    for row in rows:
        ratio, limit = row["settings"]["ratio"], row["settings"]["upper_limit"]
        try:
            _, report = compress(model, DATA, ratio=ratio, upper_limit=limit, **SETTINGS)
        except MintError as error:
            assert row["error"] == str(error)
            continue
        assert row["error"] is None
        assert row["parameters"] == report.parameters.after and row["removed"] == report.ratio.removed
        assert row["quality"] == asdict(report.quality)
        assert row["validation"] == report.validation.compressed is not None
    assert any(row["error"] is None for row in rows)

    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [float(line["ratio"]) for line in table] == [row["settings"]["ratio"] for row in rows]
    assert [line["parameters"] for line in table] == [str(row.get("parameters", "")) for row in rows]
    measured = [(line["metric"], line["metric_unit"], line["metric_higher_is_better"]) for line in table]
    assert [one for one, row in zip(measured, rows, strict=True) if row["error"] is None] == [
        ("accuracy", "%", "True") for row in rows if row["error"] is None
    ]
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.json", "out.svg"]

    again: list[Any] = []
    wider = {"ratio": (0.3, 0.4, 0.5), "upper_limit": (0.9,)}
    more = sweep(model, DATA, wider, tmp_path / "out.csv", done=again.append, **SETTINGS)
    assert [row["settings"]["ratio"] for row in again] == [0.4]  # the others were there
    assert [row["settings"]["ratio"] for row in more] == [0.3, 0.4, 0.5]
    sweep(model, DATA, wider, tmp_path / "out.csv", done=again.append, **{**SETTINGS, "round_to": 2})
    assert len(again) == 4  # other settings are other rows


def test_shares_of_macs_are_swept_too(model: nn.Module, tmp_path: Path) -> None:
    grid = {"ratio": (None, 0.3), "macs_ratio": (0.4, 0.6)}
    rows = sweep(model, DATA, grid, tmp_path / "out.csv", **SETTINGS)
    asked = [(row["settings"]["ratio"], row["settings"]["macs_ratio"]) for row in rows]
    assert asked == [(None, 0.4), (0.3, 0.4), (None, 0.6), (0.3, 0.6)]
    for row, (ratio, macs) in zip(rows, asked, strict=True):
        assert row["macs_removed"] >= macs and row["removed"] >= (ratio or 0)
    lines = table(rows).splitlines()[1:]
    assert lines[0].endswith("  macs-ratio 0.4, gaussian, limit 0.95, seed 0")
    assert lines[3].endswith("  ratio 0.3, macs-ratio 0.6, gaussian, limit 0.95, seed 0")
    assert sweep(model, DATA, grid, tmp_path / "out.csv", done=pytest.fail, **SETTINGS) == rows


def test_rows_of_another_network_or_that_failed_are_made_again(tmp_path: Path) -> None:
    made: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(2)
        one, two = Chain(16, 16), Chain(16, 16)
    for model in (one, two, one):
        sweep(model, DATA, {"ratio": (0.3,)}, tmp_path / "out.csv", done=made.append, **SETTINGS)
    assert len(made) == 2 and made[0]["quality"] != made[1]["quality"]
    for _ in range(2):
        sweep(one, DATA, {"ratio": (0.3, 0.99)}, tmp_path / "out.csv", done=made.append, **SETTINGS)
    assert [row["error"] is None for row in made] == [True, True, False, False]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["settings"]["ratio"] for row in rows] == [0.3, 0.3, 0.99]


def test_ctrl_c_says_where_the_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(b"not looked at")

    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "out.csv").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("mint_compress.sweeping.sweep", interrupted)
    line = f"sweep {tmp_path}/model.pt --ratio 0.5 --data digits -o {tmp_path}/out.csv"
    answer = invoke(line)
    assert answer.exit_code == 130
    assert answer.stderr.splitlines()[-1] == f"Interrupted; the rows made so far are in {tmp_path}/out.csv."


def test_a_sweep_in_which_nothing_works_says_why(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"99\.0% of the parameters cannot go"):
        sweep(model, DATA, {"ratio": (0.99,)}, tmp_path / "out.csv", **SETTINGS)
    with pytest.raises(MintError, match=r"writes a .csv file, not 'out.json'"):
        sweep(model, DATA, {"ratio": (0.5,)}, tmp_path / "out.json", **SETTINGS)
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "drawing.svg").write_text("mine")
    with pytest.raises(MintError, match=r"drawing\.svg is there and is no sweep's"):
        sweep(model, DATA, {"ratio": (0.5,)}, tmp_path / "drawing.csv", **SETTINGS)
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(MintError, match=r"table\.csv is there and is no sweep's"):
        sweep(model, DATA, {"ratio": (0.5,)}, tmp_path / "table.csv", **SETTINGS)
    assert (tmp_path / "table.csv").read_text() == "mine"
    with pytest.raises(MintError, match=r"other\.json is there and is no sweep"):
        sweep(model, DATA, {"ratio": (0.5,)}, tmp_path / "other.csv", **SETTINGS)


def test_the_command_prints_a_line_per_row_and_writes_the_files(tmp_path: Path) -> None:
    torch.save(Chain().state_dict(), tmp_path / "chain.pt")
    line = f"sweep {tmp_path}/chain.pt --arch networks:Chain --data {DATA} -o {tmp_path}/out.csv "
    line += "--ratio 0.3,0.99 --round-to 1 --epochs 0 --calibration-images 32 --device cpu"
    answer = invoke(line)
    assert answer.exit_code == 0, answer.stderr
    header, good, bad = answer.stdout.splitlines()
    stages = ["original", "pruned", "repaired", "healed", "finetuned"]
    assert header.split() == ["removed", "MACs", "validation", *stages, "settings"]
    assert good.endswith("ratio 0.3, gaussian, limit 0.95, seed 0") and float(good.split()[0]) >= 30
    assert bad.startswith("ratio 0.99, gaussian, limit 0.95, seed 0: 99.0% of the parameters cannot go")
    [kept, _] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert f"{100 * kept['removed']:.2f}" == good.split()[0]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ("-o out.csv --data digits", "No ratios given"),
        ("-o out.csv --ratio 0.5", "needs --data"),
        ("-o out.json --ratio 0.5 --data digits", r"writes a \.csv file"),
        ("-o no/out.csv --ratio 0.5 --data digits", "folder no does not exist"),
        ("-o out.csv --ratio 0.5,1.5 --data digits", "ratio"),
        ("-o out.csv --ratio 0.5 --groups 4,x --data digits", "not a list of whole numbers"),
        ("-o out.csv --ratio 0.5 --estimator gaussian,gim --data digits", "Unknown estimator 'gim'"),
    ],
)
def test_a_grid_that_cannot_work_is_refused(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"not looked at")
    assert re.search(message, refused(tmp_path, f"sweep model.pt {options}"))
