"""What a run says it needs: by hand for a small network, and beside what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from networks import Chain
from toydata import SHAPE, arrays

import mint_compress as mc
from mint_compress import memory_need as of
from mint_compress import run

TABLE = (Path(__file__).parent.parent / "docs" / "memory.md").read_text()
ROW = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| ([\d.]+) \| \w+ \| ([\d.]+) \|$", re.MULTILINE)


def test_each_image_counts_with_itself_and_what_waits_of_it() -> None:
    network, image = Chain(8, 8), torch.zeros(1, *SHAPE)
    need = of.memory_need(network, mc.find_groups(network, image), image)
    largest = 8 * 6 * 6 * 4
    each = 3 * 6 * 6 * 4 + 6 * largest
    # by then what waits weighs more than the second moments that scores are made of
    assert need(3000) - need(2000) == 1000 * each
    # 1 GiB may wait at most, of further images only themselves count
    enough = 2**30 // (6 * largest) + 1
    assert need(enough + 1000) - need(enough) == 1000 * 3 * 6 * 6 * 4


def test_images_are_halved_until_the_machine_has_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of.machine_memory() > 2**28
    monkeypatch.setattr(of, "machine_memory", lambda: 300)
    assert [of.within_memory(lambda n: n, wanted) for wanted in (10, 300, 301, 1024)] == [10, 300, 150, 256]
    assert of.within_memory(lambda n: 1000 * n, 1024) == of.LEAST_IMAGES


def test_a_run_says_what_it_needs_and_takes_what_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def notes(**options: int) -> str:
        _, report = mc.compress(Chain(8, 8), arrays(), ratio=0.3, dry_run=True, input_shape=SHAPE, **options)
        return "\n".join(report.notes)

    told = re.search(
        r"^needs about ([\d.]+) GiB of memory; more while it trains, by --batch-size$", notes(), re.M
    )
    assert told and 1.2 <= float(told[1]) < 1.3
    for place in (of, run):
        monkeypatch.setattr(place, "machine_memory", lambda: 2**20)
    assert "calibration images: 16 (for more there is not enough memory; --calibration-images" in notes()
    assert "needs about 1.2 GiB of memory, and there are 0.0; --calibration-images takes fewer" in caplog.text
    assert "calibration images: 50\n" in notes(calibration_images=50) + "\n"


def test_what_is_said_is_within_half_of_what_was_measured() -> None:
    rows = [(name, float(peak), float(said)) for name, _, _, peak, said in ROW.findall(TABLE)]
    assert len(rows) >= 4
    for name, peak, said in rows:
        assert 1 / 1.5 < said / peak < 1.5, name


def test_the_table_says_what_a_run_says() -> None:
    from mint_compress.zoo import resnet20_cifar

    network, image = resnet20_cifar(), torch.zeros(1, 3, 32, 32)
    need = of.memory_need(network, mc.find_groups(network, image), image)
    said = {int(images): said for name, _, images, _, said in ROW.findall(TABLE) if name == "resnet20_cifar"}
    assert said and all(f"{need(images) / of.GIB:.1f}" == told for images, told in said.items())
