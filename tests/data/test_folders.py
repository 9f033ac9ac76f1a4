"""Image files: what their pixels are, what becomes of those that cannot be read, and who reads them."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from mint_compress.data import image_reader
from mint_compress.data.augmentation import Augmented
from mint_compress.data.batching import batches
from mint_compress.data.data import Data
from mint_compress.data.folders import FolderDataset
from mint_compress.data.image_files import UnreadableImage, read_pixels
from mint_compress.data.image_reader import ImageReader, Paths
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError


def noise(*size: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def file(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


# ---- pixels


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 20, 36), (3, 40, 24)])
@pytest.mark.parametrize("size", [(91, 37), (37, 91), (28, 28), (10, 12), (33, 32)])
def test_images_are_resized_to_eight_sevenths_and_cut_from_the_middle(
    shape: tuple[int, int, int], size: tuple[int, int], tmp_path: Path
) -> None:
    path = file(tmp_path, Image.fromarray(noise(*size, 3)), "a.jpg")
    channels, height, width = shape
    image = Image.open(path).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = max(height / image.height, width / image.width) * 8 / 7
        larger = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        image = functional.center_crop(functional.resize(image, larger), [height, width])
    assert torch.equal(read_pixels(path, shape), functional.pil_to_tensor(image))


@pytest.mark.parametrize("name", ["deep.png", "deep.pgm"])
def test_grey_of_16_bits_becomes_the_nearest_of_8(name: str, tmp_path: Path) -> None:
    values = np.arange(2**16).reshape(256, 256)
    path = file(tmp_path, Image.fromarray(values.astype(np.uint16)), name)
    grey = torch.from_numpy(np.round(values / 257)).to(torch.uint8)[None]
    assert torch.equal(read_pixels(path, (1, 256, 256)), grey)
    assert torch.equal(read_pixels(path, (3, 256, 256)), grey.expand(3, -1, -1))


def test_other_ways_to_say_a_colour_are_read_as_colours(tmp_path: Path) -> None:
    colour, grey = torch.tensor([200, 40, 0]), torch.tensor([90, 90, 90])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 40, 0])
    cases = [
        (file(tmp_path, palette, "palette.png"), colour, 0),
        (file(tmp_path, palette, "one_clear.png", transparency=0), colour, 0),
        (file(tmp_path, Image.new("RGBA", (8, 8), (200, 40, 0, 128)), "clear.png"), colour, 0),
        (file(tmp_path, Image.new("CMYK", (8, 8), (55, 215, 255, 0)), "print.jpg"), colour, 3),
        (file(tmp_path, Image.new("CMYK", (8, 8), (55, 215, 255, 0)), "print.tiff"), colour, 1),
        (file(tmp_path, Image.new("LA", (8, 8), (90, 7)), "grey.png"), grey, 0),
        (file(tmp_path, Image.new("1", (8, 8), 1), "bits.png"), torch.tensor([255, 255, 255]), 0),
    ]
    for path, expected, tolerance in cases:
        found = read_pixels(path, (3, 8, 8)).long()
        assert (found - expected[:, None, None]).abs().max() <= tolerance, path
        luma = int((expected * torch.tensor([0.299, 0.587, 0.114])).sum().round())
        assert (read_pixels(path, (1, 8, 8)).long() - luma).abs().max() <= 1 + tolerance, path


def test_what_cannot_be_read_says_why_without_the_name(tmp_path: Path) -> None:
    whole = Path(file(tmp_path, Image.fromarray(noise(64, 64, 3)), "whole.jpg")).read_bytes()
    png = Path(file(tmp_path, Image.fromarray(noise(64, 64, 3)), "whole.png")).read_bytes()
    contents = {
        "half.jpg": (whole[: len(whole) // 2], "image file is truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "zero.jpg": (b"", "cannot identify image file"),
        "text.png": (b"no picture", "cannot identify image file"),
    }
    cases = {str(tmp_path / "missing.png"): "No such file"}
    for name, (content, says) in contents.items():
        (tmp_path / name).write_bytes(content)
        cases[str(tmp_path / name)] = says
    deep = Image.fromarray(np.full((8, 8), 3000, np.uint16))
    cases[file(tmp_path, deep, "deep.tiff")] = r"more than 8 bits a pixel \(TIFF, I;16\)"
    cases[file(tmp_path, Image.fromarray(np.ones((8, 8), np.float32)), "f.tiff")] = "more than 8 bits"
    for path, says in cases.items():
        with pytest.raises(UnreadableImage, match=says) as error:
            read_pixels(path, (3, 32, 32))
        assert path not in str(error.value) and "\n" not in str(error.value)


# ---- files that cannot be read


def files(folder: Path, count: int = 200, size: tuple[int, int] = (8, 8)) -> list[tuple[str, int | None]]:
    """Files with their classes; no two images are alike."""
    return [
        (file(folder, Image.fromarray(noise(*size, 3, seed=i)), f"{i:03}.png"), i % 4) for i in range(count)
    ]


def of(listed: list[tuple[str, int | None]], workers: int = 0) -> FolderDataset:
    return FolderDataset(listed, shape=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_left_out_named_and_told(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = files(tmp_path)
    good = of(listed[:70] + listed[71:])
    (tmp_path / "070.png").write_bytes(b"")
    dataset = of(listed, workers)
    expected = good.gather(torch.arange(199))
    with caplog.at_level(logging.WARNING, "mint_compress"):
        for _ in range(2):  # the second time without a warning
            found = list(batches(dataset, 20))
    assert [len(x) for x, _ in found] == [20] * 3 + [19] + [20] * 6
    assert torch.equal(torch.cat([x for x, _ in found]), expected[0])
    assert torch.equal(torch.cat([y for _, y in found]), expected[1])
    assert len(caplog.messages) == 1
    assert f"{tmp_path}/070.png (cannot identify image file)" in caplog.messages[0]
    assert dict(dataset.unreadable) == {f"{tmp_path}/070.png": "cannot identify image file"}
    # an image asked for by its number is not to be replaced by another
    assert torch.equal(dataset[71][0], expected[0][70]) and dataset[71][1] == listed[71][1]
    with pytest.raises(MintError, match=r"cannot be read \(.*070\.png: cannot identify image file\)"):
        dataset[70]
    # nothing but broken files in a batch is no batch
    assert [len(x) for x, _ in batches(dataset.subset(torch.tensor([69, 70, 71])), 1)] == [1, 1]


def test_too_many_broken_files_are_an_error_with_names(tmp_path: Path) -> None:
    listed = files(tmp_path, 250)
    for i in (3, 60, 200):
        (tmp_path / f"{i:03}.png").write_bytes(b"")
    told = r"Of 250 images at least 3 \(.*/003\.png: cannot identify.*; .*200\.png.*\) cannot be read"
    with pytest.raises(MintError, match=told):
        list(batches(of(listed), 20))
    assert sum(len(x) for x, _ in batches(of(listed[:200]), 20)) == 198
    # one file may always be broken, whatever its share
    assert len(of(listed[:5]).gather(torch.arange(5))[0]) == 4


def test_others_take_the_place_of_broken_files_in_the_calibration(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            files(tmp_path / part / label, 60)

    def opened() -> Data:
        return load_data(str(tmp_path), input_shape=(3, 8, 8), mean=[0.0], std=[1.0], workers=0)

    before, labels = opened().calibration(40, seed=5)
    data = opened()
    assert data.left_out == () and isinstance(data.train, FolderDataset)
    drawn = next(i for i in range(len(data.train)) if (data.train[i][0] == before[7]).all())
    broken = data.train.path(drawn)
    Path(broken).write_bytes(b"")
    images, targets = opened().calibration(40, seed=5)
    others = torch.arange(40) != 7
    assert len(images) == len(targets) == 40
    assert torch.equal(images[:39], before[others]) and torch.equal(targets[:39], labels[others])
    assert not any(torch.equal(images[39], other) for other in before)
    # and where there are no others, it is fewer
    data = opened()
    assert len(data.calibration(10**6, seed=5)[0]) == len(data.train) - 1 == 107
    assert data.left_out == (
        f"images left out, as they cannot be read: 1 ({broken}: cannot identify image file)",
    )


# ---- workers


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reader, "PIECE_BYTES", 3 * 8 * 8 * 7)


@pytest.mark.usefixtures("small_pieces")
def test_batches_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    listed = files(tmp_path, 100)
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def passes(workers: int) -> list[torch.Tensor]:
        dataset = Augmented(of(listed, workers), padding=2)
        generator = torch.Generator().manual_seed(1)
        return [
            torch.cat([x.flatten(1), y[:, None]], 1)
            for _ in range(2)
            for x, y in batches(dataset, 16, generator=generator)
        ]

    found = {workers: passes(workers) for workers in (0, 1, 2)}
    assert [len(x) for x in found[0]] == [16, 16, 16, 16, 16, 16, 4] * 2
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(found[0], found[workers], strict=True))
    assert not torch.equal(found[0][0], found[0][7])
    assert torch.equal(torch.get_rng_state(), state), "PyTorch's own generator moved"


def children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.usefixtures("small_pieces")
def test_workers_serve_all_passes_and_splits_and_go_with_the_data(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            files(tmp_path / part / label, 20)
    before = children()
    data = load_data(str(tmp_path), input_shape=(3, 8, 8), workers=2)
    assert isinstance(data.train, FolderDataset) and isinstance(data.test, FolderDataset)
    assert children() == before
    expected = [x for x, _ in batches(data.test, 8)]
    started = children() - before
    assert len(started) == 2
    next(batches(data.train, 8))  # given up in the middle
    next(outer := batches(data.train, 9))  # one pass in the middle of another
    found = [x for x, _ in batches(data.test, 8)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert sum(len(x) for x, _ in outer) == len(data.train) - 9
    data.calibration(20, seed=0)
    assert children() - before == started
    workers = [child for child in multiprocessing.active_children() if child.pid in started]
    del data
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.fixture
def no_handler() -> Iterator[None]:
    """Without what PyTorch installs for a DataLoader of the main thread: an error wherever that thread is."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("small_pieces", "no_handler")
def test_a_worker_that_dies_is_an_error_that_says_so(tmp_path: Path) -> None:
    dataset = of(files(tmp_path, 100), workers=2)
    before = children()
    found = batches(dataset, 10)
    next(found)
    for pid in children() - before:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(MintError, match=r"A process that reads images died .* --workers below 2, or 0"):
        list(found)
    assert sum(len(x) for x, _ in batches(dataset, 10)) == 100


def test_names_of_files_come_back_as_they_were() -> None:
    names = ["a.png", "", "ü/図.jpg", os.fsdecode(b"\xff\xfe.png")]
    paths = Paths(names)
    assert [paths[i] for i in range(len(paths))] == names
    reader = ImageReader(names, (3, 224, 224))
    assert reader.at_once == 27 and 0 <= reader.workers <= 8
