"""The examples of jobs run as a reader would run them, made small, on what scikit-learn ships."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_examples import EXAMPLES
from torchvision.models import mobilenet_v2


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def run(command: Any, *arguments: object) -> str:
    answer = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of two photographs: calibration/ of one, held_out/ of the other."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("crops")
    generator = np.random.default_rng(0)
    for part, image in zip(("calibration", "held_out"), load_sample_images().images, strict=True):
        (folder / part).mkdir()
        for i in range(40):
            top, left = (int(generator.integers(n - 64)) for n in image.shape[:2])
            Image.fromarray(image[top : top + 64, left : left + 64]).save(folder / part / f"{i:02}.png")
    return folder


# ---------------------------------------------------------------- scenes


def test_boxes_are_where_the_label_maps_have_their_digits() -> None:
    scenes = import_module("scenes")
    images, maps, found = scenes.composed(scenes.read(None, None, test=False), 12, seed=3)
    again, _, _ = scenes.composed(scenes.read(None, None, test=False), 12, seed=3)
    assert torch.equal(images, again) and images.shape == (12, 3, 64, 64)
    counts = []
    for labels, one in zip(maps, found, strict=True):
        covered = torch.zeros_like(labels, dtype=torch.bool)
        for (left, top, right, bottom), digit in zip(one["boxes"].int().tolist(), one["labels"], strict=True):
            inside = labels[top:bottom, left:right]
            assert set(inside.unique().tolist()) == {0, int(digit) + 1}
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):  # none could be tighter
                assert (side == digit + 1).any()
            covered[top:bottom, left:right] = True
        assert not labels[~covered].any()
        counts.append(len(one["boxes"]))
    assert set(counts) == {1, 2, 3}


def test_the_detector_finds_what_its_maps_say_and_its_loss_wants_that() -> None:
    networks = import_module("scene_networks")
    task = networks.DigitDetection()
    maps = [
        (torch.full((1, 10, 64 // s, 64 // s), -9.0), torch.ones(1, 4, 64 // s, 64 // s)) for s in (4, 8, 16)
    ]
    wanted = [{"boxes": torch.tensor([[8.0, 16.0, 32.0, 40.0]]), "labels": torch.tensor([7])}]
    before = task.loss(maps, wanted)
    # 24 pixels wide, so of the second level; around (20, 28), the centre of its row 3, column 2
    logits, sides = maps[1]
    logits[0, 7, 3, 2] = 9.0
    sides[0, :, 3, 2] = torch.tensor([12.0, 12.0, 12.0, 12.0]) / 8
    best = task.decode(maps)[0]
    assert best["labels"][0] == 7 and best["scores"][0] > 0.999
    assert best["boxes"][0].tolist() == [8.0, 16.0, 32.0, 40.0]
    near = networks._responsible(wanted[0]["boxes"][0], *networks._centres(maps))
    assert near.sum() == 1 and int(near.nonzero()) == 16 * 16 + 3 * 8 + 2
    assert task.loss(maps, wanted) < 0.01 < before


@pytest.mark.parametrize("job", ["segmenter", "detector"])
def test_scenes_are_learnt_and_the_network_compressed(job: str, tmp_path: Path) -> None:
    main = import_module("scene_jobs").main
    common = [job, "--scenes", 32, "--weights", tmp_path]
    assert run(main, "train", *common, "--epochs", 1).startswith("epoch 1 of 1: loss ")
    assert [p.name for p in tmp_path.iterdir()] == [f"{job}.pt"]
    results = tmp_path / f"{job}.json"
    some = ["--ratio", 0.5, "--heal-epochs", 1, "--epochs", 1, "--results", results]
    run(main, "compress", *common, *some)
    content = json.loads(results.read_text())
    assert [row["criterion"] for row in content["rows"]] == ["gaussian, backward", "L2 magnitude"]
    for row in content["rows"]:
        assert 0.5 <= row["removed"] < 0.52
        assert row["parameters"][1] == round(row["parameters"][0] * (1 - row["removed"]))
        assert row["metric"] == {"segmenter": "mIoU", "detector": "mAP"}[job]
        assert None not in (row["quality"][stage] for stage in ("original", "pruned", "repaired"))
    written = results.read_bytes()
    assert run(main, "compress", *common, *some) == ""  # all rows are there
    assert results.read_bytes() == written


# ---------------------------------------------------------------- MobileNetV2


def test_solar_cells_from_folders_of_classes(crops: Path, tmp_path: Path) -> None:
    """The two photographs stand in for the two kinds of cells."""
    for part, rows in (("train", slice(0, 24)), ("val", slice(24, 32)), ("test", slice(32, 40))):
        for kind, source in (("functional", "calibration"), ("defective", "held_out")):
            (tmp_path / part / kind).mkdir(parents=True)
            for path in sorted((crops / source).iterdir())[rows]:
                (tmp_path / part / kind / path.name).symlink_to(path)
    main = import_module("solar_cells").main
    base, results = tmp_path / "base.pt", tmp_path / "solar.json"
    common = ["--data", tmp_path, "--weights", base, "--side", 64, "--width", 0.25]
    assert run(main, "train", *common, "--epochs", 1).startswith("validation ")
    run(main, "compress", *common, "--heal-epochs", 0, "--results", results)
    ours, magnitude = json.loads(results.read_text())["rows"]
    assert ours["metric"] == "accuracy"
    whole = sum(p.numel() for p in mobilenet_v2(num_classes=2, width_mult=0.25).parameters())
    for row in (ours, magnitude):
        assert row["parameters"][0] == whole and 0.75 <= row["removed"] < 0.77
        assert row["quality"]["finetuned"] is None
    assert ours["quality"]["original"] == magnitude["quality"]["original"]


def test_photographs_without_labels_are_measured_by_the_original(crops: Path, tmp_path: Path) -> None:
    script = import_module("photographs_without_labels")
    data = script.photographs(crops, 32)
    assert len(data.train) + len(data.validation) < 40 == len(data.test)
    results = tmp_path / "photographs.json"
    some = ["--side", 32, "--width", 0.25, "--ratio", 0.3, "--heal-epochs", 1, "--results", results]
    run(script.main, "--data", crops, *some)
    rows = json.loads(results.read_text())["rows"]
    assert len(rows) == 2
    whole = sum(p.numel() for p in mobilenet_v2(width_mult=0.25).parameters())
    for row in rows:
        assert row["metric"] == "top-1 same" and row["quality"]["original"] == 1.0
        assert row["parameters"][0] == whole and 0.3 <= row["removed"] < 0.32


# ---------------------------------------------------------------- tables


def test_a_table_has_the_stages_that_were_measured() -> None:
    def row(criterion: str, repaired: float) -> dict[str, Any]:
        stages = dict.fromkeys(("pruned", "healed", "finetuned"))
        quality = {"original": 0.9, **stages, "repaired": repaired}
        return {"criterion": criterion, "ratio": 0.5, "removed": 0.512, "macs": [200, 90], "quality": quality}

    rows = [row("L2 magnitude", 0.5) | {"calibration_images": 1024}, row("gaussian, backward", 0.75)]
    assert import_module("job_tables").job_table(rows) == [
        "| removed | MACs | criterion | original | repaired |",
        "|---|---|---|---|---|",
        "| 51.2% | 55.0% | gaussian, backward | 90.00 | 75.00 |",
        "| 51.2% | 55.0% | L2 magnitude, 1,024 images | 90.00 | 50.00 |",
    ]


# ---------------------------------------------------------------- ready-made networks

TINY_CREPE = """
import torch
import torchcrepe

class Crepe(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        assert size == "tiny"
        self.first = torch.nn.Conv1d(1, 8, 64, stride=16)
        self.second = torch.nn.Conv1d(8, 16, 5, stride=4)
        self.last = torch.nn.Linear(16, torchcrepe.PITCH_BINS)

    def forward(self, x):
        x = self.second(self.first(x[:, None]).relu()).relu()
        return self.last(x.mean(2)).sigmoid()
"""


def test_a_network_out_of_a_wheel_does_its_job_as_before(tmp_path: Path) -> None:
    wheel = tmp_path / "torchcrepe-0.0-py3-none-any.whl"
    torch.manual_seed(0)
    layers = {"first": torch.nn.Conv1d(1, 8, 64), "second": torch.nn.Conv1d(8, 16, 5)}
    network = torch.nn.ModuleDict({**layers, "last": torch.nn.Linear(16, 360)})
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torchcrepe/__init__.py", "import librosa_that_is_not_here")
        archive.writestr("torchcrepe/model.py", TINY_CREPE)
        archive.write(tmp_path / "tiny.pth", "torchcrepe/assets/tiny.pth")
    ready_made = import_module("ready_made")
    said = run(ready_made.main, "crepe", "--wheel", wheel, "--ratio", 0.1, "--heal-epochs", 2).splitlines()
    assert said[0].startswith("Crepe: 1") and "repaired 99" in said[0]
    share = re.fullmatch(r"pitch: (.*)% of 2,000 tones as the original hears them", said[1])
    assert share is not None and float(share[1]) > 50
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcrepe"]:
        del sys.modules[name]


def test_pictures_with_words_and_overlaps_of_boxes(crops: Path) -> None:
    ready_made = import_module("ready_made")
    files = sorted((crops / "calibration").iterdir())
    pictures = ready_made.written_on(files, 6, seed=0)
    assert pictures.shape == (6, 3, 128, 128) and torch.equal(
        pictures, ready_made.written_on(files, 6, seed=0)
    )
    assert ready_made.overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert ready_made.overlap((0, 0, 2, 2), (2, 0, 3, 3)) == 0
