import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mint_compress.errors import MintError
from mint_compress.reporting import Report
from mint_compress.reporting.records import (
    BeforeAfter,
    ClassChange,
    Counts,
    DataFacts,
    Disagreement,
    Latencies,
    Latency,
    LayerChange,
    LeftAlone,
    Machine,
    Metric,
    Parity,
    ReceiptCounts,
    Share,
    Stages,
    Trial,
)
from mint_compress.reporting.text import left_alone_lines

ACCURACY_METRIC = Metric("accuracy", "%")

FULL = {
    "format": 2,
    "model": "vgg16.pt",
    "seed": 3,
    "command": "mint-compress vgg16.pt --ratio 0.75 -o out/small.onnx",
    "versions": {"torch": "2.15.0"},
    "machine": {"system": "Linux", "device": "x86_64", "threads": 2},
    "settings": {"ratio": 0.75, "macs_ratio": None, "ignore": [], "lr": 0.05, "augment": True},
    "data": {
        "name": "digits",
        "input_shape": [3, 32, 32],
        "classes": 10,
        "train": 1295,
        "validation": 143,
        "test": None,
        "mean": [0.5, 0.25, 0.125],
        "std": None,
    },
    "ratio": {"asked": 0.75, "removed": 0.7512},
    "parameters": {"before": 10_000_000, "after": 2_488_000},
    "macs": {"before": 300_000_000, "after": 75_000_000},
    "task": "classification",
    "metric": {"name": "accuracy", "unit": "%", "higher_is_better": True},
    "quality": {"original": 0.986, "pruned": 0.52, "repaired": 0.971, "healed": 0.98, "finetuned": 0.9852},
    "validation": {"original": 0.98, "compressed": 0.9},
    "details": {"balanced accuracy": {"original": 0.97, "compressed": 0.75}},
    "classes": [
        {"number": 0, "original": 1.0, "compressed": 0.9, "support": 40},
        {"number": 1, "original": 0.94, "compressed": 0.6, "support": 1_000},
        {"number": 2, "original": None, "compressed": None, "support": 0},
    ],
    "layers": [
        {"pair": "conv1 -> conv2", "before": 4_000, "after": 1_000},
        {"pair": "conv[2] -> fc", "before": 250, "after": 250},
    ],
    "left_alone": [
        {"group": "fc", "reason": "the network's output"},
        {"group": "down1", "reason": "its channel map failed the permutation check"},
        {"group": "down2", "reason": "its channel map failed the permutation check"},
    ],
    "receipt": {"modules": 2_488_000, "tensors": 2_488_000, "export": 2_488_000},
    "parity": {"max_abs": 2.1e-7, "max_rel": 3e-7, "top1": 1.0},
    "latency_ms": {
        "original": {"median": 12.5, "p90": 13.0, "p99": 14.25, "runs": 812},
        "pruned": {"median": 3.125, "p90": 3.5, "p99": None, "runs": 82},
    },
    "speedup": 4.0,
    "macs_ratio": 4.0,
    "provider": "CPUExecutionProvider",
    "int8": None,
    "fp16": None,
    "trials": [
        {"removed": 0.7512, "macs_removed": 0.75, "quality": None, "latency_ms": 3.1, "speedup": 4.03}
    ],
    "layer_ms": [],
    "disagreements": [{"index": 3, "said": "class 1 became 2", "image": None}],
    "plan": {"format": 1, "groups": {"conv1": [0, 1]}},
    "sha256": {"out/small.onnx": "ab", "out/small.safetensors": "cd"},
    "seconds": {"calibrate": 12.5, "repair": 3.25},
    "notes": ["1,024 calibration images."],
}
"""What format 2 has always written of the report ``full``."""

EMPTY = {
    "format": 2,
    "model": None,
    "seed": None,
    "command": None,
    "versions": {},
    "machine": {},
    "settings": {},
    "data": None,
    "ratio": {"asked": None, "removed": None},
    "parameters": {"before": None, "after": None},
    "macs": {"before": None, "after": None},
    "task": None,
    "metric": {"name": None, "unit": None, "higher_is_better": None},
    "quality": {"original": None, "pruned": None, "repaired": None, "healed": None, "finetuned": None},
    "validation": {"original": None, "compressed": None},
    "details": {},
    "classes": [],
    "layers": [],
    "left_alone": [],
    "receipt": {"modules": None, "tensors": None, "export": None},
    "parity": {"max_abs": None, "max_rel": None, "top1": None},
    "latency_ms": {
        "original": {"median": None, "p90": None, "p99": None, "runs": None},
        "pruned": {"median": None, "p90": None, "p99": None, "runs": None},
    },
    "speedup": None,
    "macs_ratio": None,
    "provider": None,
    "int8": None,
    "fp16": None,
    "trials": [],
    "layer_ms": [],
    "disagreements": [],
    "plan": None,
    "sha256": {},
    "seconds": {},
    "notes": [],
}


@pytest.fixture
def full() -> Report:
    mean = (0.5, 0.25, 0.125)
    return Report(
        model="vgg16.pt",
        seed=3,
        command="mint-compress vgg16.pt --ratio 0.75 -o out/small.onnx",
        versions={"torch": "2.15.0"},
        machine=Machine("Linux", "x86_64", threads=2),
        settings={"ratio": 0.75, "macs_ratio": None, "ignore": (), "lr": 0.05, "augment": True},
        data=DataFacts("digits", (3, 32, 32), 10, train=1295, validation=143, test=None, mean=mean, std=None),
        ratio=Share(asked=0.75, removed=0.7512),
        parameters=Counts(10_000_000, 2_488_000),
        macs=Counts(300_000_000, 75_000_000),
        task="classification",
        metric=ACCURACY_METRIC,
        quality=Stages(0.986, 0.52, 0.971, 0.98, 0.9852),
        validation=BeforeAfter(original=0.98, compressed=0.9),
        details={"balanced accuracy": BeforeAfter(0.97, 0.75)},
        classes=(
            ClassChange(0, 1.0, 0.9, 40),
            ClassChange(1, 0.94, 0.6, 1_000),
            ClassChange(2, None, None, 0),
        ),
        layers=(LayerChange("conv1 -> conv2", 4_000, 1_000), LayerChange("conv[2] -> fc", 250, 250)),
        left_alone=(
            LeftAlone("fc", "the network's output"),
            LeftAlone("down1", "its channel map failed the permutation check"),
            LeftAlone("down2", "its channel map failed the permutation check"),
        ),
        receipt=ReceiptCounts(2_488_000, 2_488_000, 2_488_000),
        parity=Parity(max_abs=2.1e-7, max_rel=3e-7, top1=1.0),
        latency_ms=Latencies(Latency(12.5, 13.0, 14.25, 812), Latency(3.125, 3.5, None, 82)),
        speedup=4.0,
        macs_ratio=4.0,
        provider="CPUExecutionProvider",
        trials=(Trial(0.7512, 0.75, latency_ms=3.1, speedup=4.03),),
        disagreements=(Disagreement(3, "class 1 became 2"),),
        plan={"format": 1, "groups": {"conv1": [0, 1]}},
        sha256={"out/small.onnx": "ab", "out/small.safetensors": "cd"},
        seconds={"calibrate": 12.5, "repair": 3.25},
        notes=("1,024 calibration images.",),
    )


def test_the_json_is_what_format_2_has_always_been(full: Report) -> None:
    # as text, for the order of the keys counts at every depth
    assert full.to_json() == json.dumps(FULL, indent=2)
    assert Report().to_json() == json.dumps(EMPTY, indent=2)
    assert full.to_dict() == FULL and Report().to_dict() == EMPTY


def test_what_is_read_is_what_was_written(full: Report) -> None:
    again = Report.from_json(full.to_json())
    assert again.latency_ms == full.latency_ms and again.layers == full.layers
    assert again == replace(full, settings=again.settings, data=again.data)  # lists in the place of tuples
    assert again.to_dict() == FULL and str(again) == str(full)
    assert Report.from_dict(EMPTY) == Report()


def test_a_key_that_is_not_there_is_none() -> None:
    assert Report.from_dict({"format": 2}) == Report()
    quality = {"original": 0.9, "pruned": 0.5}
    old = Report.from_dict({"format": 2, "quality": quality, "parity": {"max_abs": 1e-6, "max_rel": 1e-7}})
    assert old == Report(quality=Stages(0.9, 0.5), parity=Parity(1e-6, 1e-7, None))


def test_reports_of_format_1_had_accuracy_alone() -> None:
    accuracy = {"original": 0.9, "pruned": 0.5, "repaired": None, "finetuned": 0.875}
    report = Report.from_dict({"format": 1, "model": "a.pt", "accuracy": accuracy})
    assert report == Report(model="a.pt", metric=ACCURACY_METRIC, quality=Stages(0.9, 0.5, None, None, 0.875))
    assert report.accuracy.finetuned == 0.875
    assert replace(report, metric=Metric("mIoU", "%")).accuracy == Stages()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "The report has format 3; this version reads 2. Update mint-compress."),
        ({"format": None}, "The report has format None; this version reads 2."),
        ({"energy": 3}, "The report has a key 'energy' that this version does not know. Update"),
        ({"receipt": {"modules": 1, "onnx": 3}}, "The report has a key 'receipt.onnx' that this version"),
        ({"seed": "three"}, "This is not a report, or a damaged one: seed is 'three'."),
        ({"speedup": True}, "This is not a report, or a damaged one: speedup is True."),
        ({"notes": "one"}, "This is not a report, or a damaged one: notes is 'one'."),
        (
            {"layers": [{"pair": "a - b", "before": 3}]},
            "This is not a report, or a damaged one: layers[0].after",
        ),
        ({"parity": [1, 2]}, "This is not a report, or a damaged one: parity is [1, 2]."),
        ({"sha256": {"a.onnx": 3}}, "This is not a report, or a damaged one: sha256.a.onnx is 3."),
    ],
)
def test_what_is_no_report_of_this_version_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MintError) as caught:
        Report.from_dict({**FULL, **change})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", "3", "null", '"report"'])
def test_other_files_are_no_reports(text: str) -> None:
    with pytest.raises(MintError, match="This is not a report"):
        Report.from_json(text)


def test_stages_fill_it_in_part_by_part() -> None:
    report = replace(Report(), quality=Stages(original=0.9))
    report = replace(report, quality=replace(report.quality, pruned=0.5))
    quality = {"original": 0.9, "pruned": 0.5, "repaired": None, "healed": None, "finetuned": None}
    assert report.to_dict() == {**EMPTY, "quality": quality}


def test_numbers_of_numpy_and_non_finite_ones_are_plain_json() -> None:
    seed, share = np.int64(4), np.float32(0.5)
    report = Report(speedup=math.inf, seed=seed, quality=Stages(share, math.nan))  # type: ignore[arg-type]
    read = json.loads(report.to_json())
    assert read["speedup"] is None and read["seed"] == 4
    assert read["quality"]["original"] == 0.5 and read["quality"]["pruned"] is None


def test_a_share_of_nothing_is_not_known() -> None:
    assert Counts(8, 2).removed == 0.75
    assert Counts(0, 0).removed is None


def test_the_last_lines_say_whether_to_ship(full: Report) -> None:
    assert str(full).splitlines()[-13:] == [
        "Parameters  10,000,000 -> 2,488,000, 75.12 % removed (asked 75.00 %)",
        "MACs        300,000,000 -> 75,000,000, 75.00 % removed (4.00x fewer)",
        "Accuracy    98.60 % original, 52.00 % after removal",
        "            97.10 % after repair, 98.00 % after healing",
        "            98.52 % after fine-tuning (-0.08 points)",
        "            balanced accuracy 97.00 % -> 75.00 %",
        "            class 1 lost most: 94.0 % -> 60.0 % of 1,000",
        "Receipt     three ways agree: 2,488,000 parameters",
        "Parity      differs by at most 2.1e-07 (3.0e-07 relative), top-1 same on 100.0 %",
        "Original    median 12.50 ms, p90 13.00 ms, p99 14.25 ms (812 runs)",
        "Pruned      median 3.125 ms, p90 3.500 ms, p99 not measured (82 runs)",
        "Speed-up    4.00x (MACs ratio 4.00x) on CPUExecutionProvider",
        "Written     out/small.onnx, .safetensors, .json, .html",
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
    left = [
        LeftAlone("a", "cannot go: it fails (shape '[1, 4]')"),
        LeftAlone("b", "cannot go: it fails (shape '[1, 8]')"),
        LeftAlone("c", "ignored by the user (c)"),
    ]
    assert list(left_alone_lines(left)) == [
        "cannot go: it fails (2 groups): a, b",
        "ignored by the user (c): c",
    ]


def test_every_group_left_alone_is_named() -> None:
    left = tuple(LeftAlone(f"layer{i}.conv", "ignored") for i in range(60))
    text = str(Report(left_alone=left))
    assert "ignored (60 groups)" in text
    assert all(f"layer{i}.conv" in text for i in range(60))


def test_nothing_measured_says_so_and_writes_nothing() -> None:
    lines = str(Report()).split("\n")
    for title in ("Parameters", "MACs", "Quality", "Receipt", "Parity", "Speed-up"):
        assert f"{title:<12}not measured" in lines
    for title in ("Original", "Pruned"):
        assert f"{title:<12}latency not measured" in lines
    assert f"{'Written':<12}nothing" in lines


def test_counts_that_differ_are_shouted(full: Report) -> None:
    report = replace(full, receipt=ReceiptCounts(10, 10, 11))
    assert "Receipt     COUNTS DIFFER: modules 10, tensors 10, export 11" in str(report)
    report = replace(full, receipt=ReceiptCounts(10))
    assert "Receipt     counted from modules only: 10 parameters" in str(report)


def test_accuracy_without_fine_tuning_compares_the_repaired_model(full: Report) -> None:
    report = replace(full, quality=Stages(original=0.9, pruned=0.3, repaired=0.875))
    assert "87.50 % after repair, not fine-tuned (-2.50 points)" in str(report)


def test_every_metric_is_said_in_its_unit(full: Report) -> None:
    quality = Stages(0.25, 4.5, 0.5)
    said = str(replace(full, metric=Metric("MAE", "mm", higher_is_better=False), quality=quality))
    assert "MAE         0.2500 mm original, 4.500 mm after removal" in said
    assert "0.5000 mm after repair, not fine-tuned (+0.25 mm)" in said
    assert "mIoU        25.00 % original" in str(replace(full, metric=Metric("mIoU", "%"), quality=quality))
    assert "R²          0.2500 original" in str(replace(full, metric=Metric("R²"), quality=quality))


@pytest.mark.parametrize(
    ("higher", "value", "than", "worse"),
    [(True, 0.5, 0.6, True), (True, 0.6, 0.5, False), (False, 0.6, 0.5, True), (True, math.nan, 0.1, True)]
    + [(True, 0.5, 0.5, False), (False, math.nan, math.nan, False)],
)
def test_a_metric_knows_its_direction(higher: bool, value: float, than: float, worse: bool) -> None:
    assert Metric("any", higher_is_better=higher).is_worse(value, than) is worse


def test_it_fits_80_columns_and_has_no_colour_codes(full: Report) -> None:
    text = str(full)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_nothing_is_displayed_in_a_notebook(full: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: shown.append(given))
    assert "Parameters" in str(full) and not shown


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
    assert second_pass.files == ("b.onnx", "b.safetensors", "b.json", "b.html")
    assert Report(sha256={"small.plan.json": "a"}).files == ("small.plan.json",)
    assert "Written     small.plan.json" in str(Report(sha256={"small.plan.json": "a"}))
