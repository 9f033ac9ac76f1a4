import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mint_compress.reporting import LeftAlone, Report, left_alone_lines

KEYS = [
    *("format", "model", "seed", "command", "versions", "machine", "settings", "data"),
    *("ratio", "parameters", "macs", "accuracy", "validation", "layers"),
    *("left_alone", "receipt", "parity", "latency_ms", "speedup", "macs_ratio", "provider", "plan", "sha256"),
    "notes",
]


@pytest.fixture
def full() -> Report:
    return Report(
        model="vgg16.pt",
        seed=3,
        command="mint-compress vgg16.pt --ratio 0.75 -o out/small.onnx",
        versions={"torch": "2.15.0"},
        ratio={"asked": 0.75, "removed": 0.7512},
        parameters={"before": 10_000_000, "after": 2_488_000},
        macs={"before": 300_000_000, "after": 75_000_000},
        accuracy={"original": 0.986, "pruned": 0.52, "repaired": 0.971, "finetuned": 0.9852},
        layers=[
            {"pair": "conv1 -> conv2", "before": 4_000, "after": 1_000},
            {"pair": "conv[2] -> fc", "before": 250, "after": 250},
        ],
        left_alone=[
            {"group": "fc", "reason": "the network's output"},
            {"group": "down1", "reason": "its channel map failed the permutation check"},
            {"group": "down2", "reason": "its channel map failed the permutation check"},
        ],
        receipt={"modules": 2_488_000, "tensors": 2_488_000, "export": 2_488_000},
        parity={"max_abs": 2.1e-7, "max_rel": 3e-7, "top1": 1.0},
        latency_ms={
            "original": {"median": 12.5, "p90": 13.0, "p99": 14.25, "runs": 812},
            "pruned": {"median": 3.125, "p90": 3.5, "p99": None, "runs": 82},
        },
        speedup=4.0,
        macs_ratio=4.0,
        provider="CPUExecutionProvider",
        plan={"format": 1, "groups": {"conv1": [0, 1]}},
        sha256={"out/small.onnx": "ab", "out/small.safetensors": "cd"},
        notes=("1,024 calibration images.",),
    )


def test_the_fields_are_the_keys_of_the_json() -> None:
    assert [f.name for f in fields(Report)] == KEYS
    assert list(Report().to_dict()) == KEYS
    assert list(json.loads(Report().to_json())) == KEYS


def test_unmeasured_is_null_and_keeps_its_keys() -> None:
    empty = Report().to_dict()
    assert empty["accuracy"] == dict.fromkeys(["original", "pruned", "repaired", "finetuned"])
    times = dict.fromkeys(["median", "p90", "p99", "runs"])
    assert empty["latency_ms"] == {"original": times, "pruned": times}
    assert empty["receipt"] == dict.fromkeys(["modules", "tensors", "export"])
    assert empty["parity"] == dict.fromkeys(["max_abs", "max_rel", "top1"])
    assert empty["layers"] == empty["left_alone"] == empty["notes"] == []
    assert empty["plan"] is None and empty["provider"] is None


def test_json_gives_the_same_object_back(full: Report) -> None:
    again = json.loads(full.to_json())
    assert again == full.to_dict()
    assert again["latency_ms"]["pruned"] == {"median": 3.125, "p90": 3.5, "p99": None, "runs": 82}
    assert again["layers"][1] == {"pair": "conv[2] -> fc", "before": 250, "after": 250}
    assert again["plan"]["groups"]["conv1"] == [0, 1]


def test_stages_fill_it_in_part_by_part() -> None:
    report = replace(Report(), accuracy={"original": 0.9})
    report = replace(report, accuracy={**report.accuracy, "pruned": 0.5})
    assert report.accuracy == {"original": 0.9, "pruned": 0.5, "repaired": None, "finetuned": None}


def test_an_unknown_nested_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"receipt has no key 'onnx'\. Its keys: modules, tensors, export"):
        Report(receipt={"onnx": 3})


def test_numbers_of_numpy_and_non_finite_ones_are_plain_json() -> None:
    numbers: Any = {"seed": np.int64(4), "accuracy": {"original": np.float32(0.5), "pruned": math.nan}}
    report = Report(speedup=math.inf, **numbers)
    read = json.loads(report.to_json())
    assert read["speedup"] is None and read["seed"] == 4
    assert read["accuracy"]["original"] == 0.5 and read["accuracy"]["pruned"] is None


def test_the_last_ten_lines_say_whether_to_ship(full: Report) -> None:
    assert str(full).splitlines()[-10:] == [
        "Parameters  10,000,000 -> 2,488,000, 75.12 % removed (asked 75.00 %)",
        "MACs        300,000,000 -> 75,000,000, 75.00 % removed (4.00x fewer)",
        "Accuracy    98.60 % original, 52.00 % after removal",
        "            97.10 % after repair, 98.52 % after fine-tuning (-0.08 points)",
        "Receipt     three ways agree: 2,488,000 parameters",
        "Parity      differs by at most 2.1e-07 (3.0e-07 relative), top-1 same on 100.0 %",
        "Original    median 12.50 ms, p90 13.00 ms, p99 14.25 ms (812 runs)",
        "Pruned      median 3.125 ms, p90 3.500 ms, p99 not measured (82 runs)",
        "Speed-up    4.00x (MACs ratio 4.00x) on CPUExecutionProvider",
        "Written     out/small.onnx, .safetensors, .json",
    ]


def test_notes_then_layers_then_what_was_left_alone(full: Report) -> None:
    text = str(full)
    parts = ["Note: 1,024 calibration images.", "conv1 -> conv2", "Left alone:", "Parameters  10,000,000"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    rows = [line.split() for line in text.splitlines() if " -> " in line and "conv" in line]
    assert rows[0] == ["conv1", "->", "conv2", "4,000", "1,000", "75.0", "%"]
    # square brackets are no markup
    assert rows[1] == ["conv[2]", "->", "fc", "250", "250", "0.0", "%"]
    assert "its channel map failed the permutation check (2 groups): down1, down2" in text
    assert "the network's output: fc" in text


def test_groups_are_left_alone_by_cause_whatever_the_figures() -> None:
    left: list[LeftAlone] = [
        {"group": "a", "reason": "cannot go: it fails (shape '[1, 4]')"},
        {"group": "b", "reason": "cannot go: it fails (shape '[1, 8]')"},
        {"group": "c", "reason": "ignored by the user (c)"},
    ]
    assert list(left_alone_lines(left)) == [
        "cannot go: it fails (2 groups): a, b",
        "ignored by the user (c): c",
    ]


def test_every_group_left_alone_is_named() -> None:
    left: list[LeftAlone] = [{"group": f"layer{i}.conv", "reason": "ignored"} for i in range(60)]
    text = str(Report(left_alone=left))
    assert "ignored (60 groups)" in text
    assert all(f"layer{i}.conv" in text for i in range(60))


def test_nothing_measured_says_so_and_writes_nothing() -> None:
    lines = str(Report()).split("\n")
    for title in ("Parameters", "MACs", "Accuracy", "Receipt", "Parity", "Speed-up"):
        assert f"{title:<12}not measured" in lines
    assert f"{'Written':<12}nothing" in lines


def test_counts_that_differ_are_shouted(full: Report) -> None:
    report = replace(full, receipt={"modules": 10, "tensors": 10, "export": 11})
    assert "Receipt     COUNTS DIFFER: modules 10, tensors 10, export 11" in str(report)
    report = replace(full, receipt={"modules": 10})
    assert "Receipt     counted from modules only: 10 parameters" in str(report)


def test_accuracy_without_fine_tuning_compares_the_repaired_model(full: Report) -> None:
    report = replace(full, accuracy={"original": 0.9, "pruned": 0.3, "repaired": 0.875})
    assert "87.50 % after repair, not fine-tuned (-2.50 points)" in str(report)


def test_it_fits_80_columns_and_has_no_colour_codes(full: Report) -> None:
    text = str(full)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_a_colour_terminal_gets_the_same_words(full: Report) -> None:
    console = Console(width=80, force_terminal=True, color_system="truecolor", highlight=False)
    with console.capture() as capture:
        console.print(full)
    coloured = capture.get()
    assert "\x1b[1m" in coloured and "three ways agree: 2,488,000" in coloured


def test_files_are_what_was_written_not_what_was_read() -> None:
    second_pass = Report(
        model="small.safetensors", sha256={"small.safetensors": "a", "b.onnx": "b", "b.safetensors": "c"}
    )
    assert second_pass.files == ("b.onnx", "b.safetensors", "b.json")
    assert Report(sha256={"small.plan.json": "a"}).files == ("small.plan.json",)
    assert "Written     small.plan.json" in str(Report(sha256={"small.plan.json": "a"}))
