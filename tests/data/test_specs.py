"""Data specs: values, sizes, splits, draws, and every way the data can be wrong."""

# mypy: disable-error-code="arg-type,union-attr,index,operator,no-untyped-call"

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features
from torch.utils.data import DataLoader

from mint_compress.data.augmentation import Augmented
from mint_compress.data.batching import batches
from mint_compress.data.datasets import ArrayDataset, ImageDataset
from mint_compress.data.specs import IMAGENET, Data, load_data
from mint_compress.data.synthetic import synthetic_images
from mint_compress.errors import MintError

IMAGENET_MEAN, IMAGENET_STD = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)


def arrays(
    n_train: int = 40, n_test: int = 10, shape: tuple[int, ...] = (8, 8, 3), classes: int = 4
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train) % classes,
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test) % classes,
    }


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    def write(**changes: np.ndarray | None) -> str:
        made = {k: v for k, v in {**arrays(), **changes}.items() if v is not None}
        np.savez(tmp_path / "set.npz", **made)
        return str(tmp_path / "set.npz")

    return write


def everything(dataset: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(batches(dataset, 7))  # type: ignore[arg-type]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


# ---- digits


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


def test_digits_have_fixed_stratified_splits_that_do_not_overlap(digits: Data) -> None:
    sets = [digits.train, digits.validation, digits.test]
    assert [len(s) for s in sets] == [1295, 143, 359]
    assert digits.sizes == (1295, 143, 359)
    assert digits.classes == 10
    assert digits.input_shape == (3, 32, 32)
    images = [everything(s)[0].flatten(1)[:, ::3] for s in sets]
    assert len(torch.unique(torch.cat(images), dim=0)) == 1797
    for s in sets:
        counts = torch.bincount(s.labels)
        assert counts.max() - counts.min() <= 0.12 * len(s) / 10


def test_digits_are_sixteenths_normalised_with_imagenets_mean(digits: Data) -> None:
    eight = load_data("digits", input_shape=(3, 8, 8))
    images, _ = everything(eight.test)
    raw = images * IMAGENET_STD + IMAGENET_MEAN
    assert (raw * 16 - (raw * 16).round()).abs().max() < 1e-5
    assert raw.min() > -1e-6
    assert raw.max() == pytest.approx(1)
    assert (digits.mean, digits.std) == IMAGENET
    assert digits.augmented is digits.train
    assert load_data("digits", input_shape=(1, 32, 32)).mean == (0.1307,)
    assert load_data("digits", input_shape=(1024,)).test[0][0].shape == (1024,)


def test_digits_are_the_same_whatever_the_seed_and_say_what_they_are(digits: Data) -> None:
    other = load_data("digits", seed=5)
    assert torch.equal(everything(other.test)[0], everything(digits.test)[0])
    assert digits.description == (
        "digits: 1,295 train, 143 validation, 359 test images of 3x32x32 in 10 classes; "
        "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"
    )


def test_calibration_is_balanced_without_replacement_and_repeats(digits: Data) -> None:
    images, labels = digits.calibration(203, seed=7)
    counts = torch.bincount(labels, minlength=10)
    assert sorted(counts.tolist()) == [20] * 7 + [21] * 3
    assert len(torch.unique(images.flatten(1), dim=0)) == 203
    assert torch.equal(images, digits.calibration(203, seed=7)[0])
    assert not torch.equal(images, digits.calibration(203, seed=8)[0])
    assert labels[:20].unique().numel() > 3
    assert len(digits.calibration(5000, seed=0)[0]) == 1295


# ---- arrays


def test_npz_values_are_exact_for_every_layout(npz: Callable[..., str]) -> None:
    made = arrays()
    expected = torch.from_numpy(made["x_test"]).permute(0, 3, 1, 2).double() / 255
    expected = (expected - IMAGENET_MEAN) / IMAGENET_STD
    data = load_data(npz())
    images, labels = everything(data.test)
    assert images.dtype == torch.float32
    assert (images - expected).abs().max() < 1e-6
    assert labels.tolist() == made["y_test"].tolist()
    planes = {k: made[k].transpose(0, 3, 1, 2) for k in ("x_train", "x_test")}
    assert torch.equal(everything(load_data(npz(**planes)).test)[0], images)
    image, label = data.test[3]
    assert torch.equal(image, images[3])
    assert label == 3


def test_npz_keeps_uint8_in_memory_and_gives_items_to_a_dataloader(npz: Callable[..., str]) -> None:
    data = load_data(npz())
    assert isinstance(data.train, ArrayDataset)
    assert data.train.images.dtype == torch.uint8
    images = torch.cat([x for x, _ in DataLoader(data.test, batch_size=4)])
    assert torch.equal(images, everything(data.test)[0])


def test_npz_validation_is_a_tenth_of_train(npz: Callable[..., str]) -> None:
    data = load_data(npz())
    assert [len(s) for s in (data.train, data.validation, data.test)] == [36, 4, 10]
    assert torch.bincount(data.validation.labels).tolist() == [1, 1, 1, 1]
    rows = torch.cat([everything(s)[0] for s in (data.train, data.validation)]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 40


def test_grey_images_use_mnists_mean_and_floats_none(npz: Callable[..., str]) -> None:
    grey = {k: arrays()[k][..., 0] for k in ("x_train", "x_test")}
    data = load_data(npz(**grey))
    assert data.input_shape == (1, 8, 8)
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    assert data.augmented is data.train
    expected = (torch.from_numpy(grey["x_test"])[:, None].double() / 255 - 0.1307) / 0.3081
    assert (everything(data.test)[0] - expected).abs().max() < 1e-6

    floats = {k: arrays()[k].astype(np.float64) / 7 for k in ("x_train", "x_test")}
    data = load_data(npz(**floats))
    assert data.mean is None
    assert data.augmented is data.train
    assert "no normalisation" in data.description
    assert torch.equal(
        everything(data.test)[0], torch.from_numpy(floats["x_test"]).permute(0, 3, 1, 2).float()
    )
    assert load_data(npz(**grey), input_shape=(64,)).test[0][0].shape == (64,)


def test_mean_and_std_of_the_user_win(npz: Callable[..., str]) -> None:
    data = load_data(npz(), mean=[0.5], std=[0.25])
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)
    expected = (torch.from_numpy(arrays()["x_test"]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    assert (everything(data.test)[0] - expected).abs().max() < 1e-6
    assert load_data(npz(), std=[0.5]).mean == IMAGENET[0]


def test_augmented_photographs_repeat_by_generator_and_leave_train_alone(npz: Callable[..., str]) -> None:
    data = load_data(npz())
    assert isinstance(data.augmented, Augmented)
    assert isinstance(data.train, ImageDataset)
    assert data.augmented.padding == 1
    draws = [
        torch.cat([x for x, _ in batches(data.augmented, 9, generator=torch.Generator().manual_seed(s))])
        for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    rows = torch.arange(36)
    assert not torch.equal(data.augmented.gather(rows)[0], data.train.gather(rows)[0])
    assert torch.equal(data.train.gather(rows)[0], data.train.gather(rows)[0])
    assert data.augmented.gather(rows)[1].tolist() == data.train.labels.tolist()


BAD_ARRAYS = {
    "missing key": ({"y_test": None}, "has no y_test"),
    "lengths": ({"y_train": np.arange(39) % 4}, "39 labels for 40 images"),
    "infinite targets": ({"y_train": np.full(40, np.inf)}, "y_train has NaN or infinite values"),
    "complex targets": ({"y_train": np.zeros(40, np.complex64)}, "Targets are integers or floats"),
    "negative labels": ({"y_train": np.arange(40) % 4 - 1}, "the label -1"),
    "NaN": ({"x_train": np.full((40, 8, 8, 3), np.nan, np.float32)}, "NaN or infinite values in 40 of 40"),
    "int32 images": ({"x_train": np.zeros((40, 8, 8, 3), np.int32)}, "x_train is int32"),
    "one axis": ({"x_train": np.zeros(40, np.uint8)}, "has shape (40,)"),
    "volumes and images": (
        {"x_train": np.zeros((40, 3, 4, 8, 8), np.uint8)},
        "x_train has samples of 3x4x8x8, x_test images of 3x8x8. They must agree",
    ),
    "no images": ({"x_train": np.zeros((0, 8, 8, 3), np.uint8)}, "has shape (0, 8, 8, 3)"),
    "layout": ({"x_train": np.zeros((40, 8, 8, 5), np.uint8)}, "which axis is the channels?"),
    "two shapes": ({"x_test": np.zeros((10, 9, 9, 3), np.uint8)}, "They must agree"),
    "two types": ({"x_test": np.zeros((10, 8, 8, 3), np.float32)}, "both be floats"),
    "objects": ({"y_train": np.array([object()] * 40)}, "allow_pickle=False"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_say_what_is_wrong(case: str, npz: Callable[..., str]) -> None:
    changes, message = BAD_ARRAYS[case]
    with pytest.raises(MintError) as error:
        load_data(npz(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_of_the_wrong_shape_for_the_network_name_both_shapes(npz: Callable[..., str]) -> None:
    with pytest.raises(MintError, match="images of 3x8x8, but the network takes 3x32x32"):
        load_data(npz(), input_shape=(3, 32, 32))
    five = {k: np.zeros((n, 8, 8, 5), np.uint8) for k, n in (("x_train", 40), ("x_test", 10))}
    data = load_data(npz(**five), input_shape=(5, 8, 8))
    assert data.input_shape == (5, 8, 8)
    assert data.mean is None


NO_IMAGES = ((1, 256), (6, 7), (7, 7), (28, 3), (3, 4, 8, 8), (1, 4, 6, 6), (2, 3, 4, 5, 6), (5,))


@pytest.mark.parametrize("shape", NO_IMAGES)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_of_just_what_the_network_takes_go_as_they_are(
    shape: tuple[int, ...], kind: type, npz: Callable[..., str]
) -> None:
    made = {k: v.astype(kind) for k, v in arrays(shape=shape).items() if k in ("x_train", "x_test")}
    data = load_data(npz(**made), input_shape=shape)
    assert data.input_shape == shape
    assert data.augmented is data.train
    size = "x".join(map(str, shape))
    assert f"36 train, 4 validation, 10 test samples of {size} in 4 classes" in data.description
    expected = torch.from_numpy(made["x_test"]).float()
    if kind is np.uint8:
        expected = expected / 255
        if len(shape) == 1:  # as flattened grey images
            expected = (expected - 0.1307) / 0.3081
    assert (everything(data.test)[0] - expected).abs().max() < 1e-6
    assert data.calibration(8, seed=0)[0].shape == (8, *shape)


def test_an_exact_match_comes_before_what_is_usual_of_images(npz: Callable[..., str]) -> None:
    """Eight channels of 8x3, not three of 8x8; and three of 3x3 whose layout could be either."""
    data = load_data(npz(), input_shape=(8, 8, 3))
    expected = torch.from_numpy(arrays()["x_test"]).float() / 255
    assert torch.equal(everything(data.test)[0], expected)
    assert (data.mean, data.augmented is data.train) == (None, True)
    cubes = {k: arrays(shape=(3, 3, 3))[k] for k in ("x_train", "x_test")}
    data = load_data(npz(**cubes), input_shape=(3, 3, 3), mean=[0.0], std=[1.0])
    assert torch.equal(everything(data.test)[0], torch.from_numpy(cubes["x_test"]).float() / 255)
    assert isinstance(data.augmented, Augmented)


@pytest.mark.parametrize(
    ("stored", "taken", "there"),
    [
        ((256,), (1, 256), lambda x: x[:, None]),
        ((4, 6, 8), (1, 4, 6, 8), lambda x: x[:, None]),
        ((7, 6), (6, 7), lambda x: x.swapaxes(1, 2)),
        ((4, 6, 8, 3), (3, 4, 6, 8), lambda x: x.transpose(0, 4, 1, 2, 3)),
        ((3, 4, 8, 8), (768,), lambda x: x.reshape(len(x), -1)),
    ],
)
def test_channels_last_or_left_out_fit_in_any_number_of_dimensions(
    stored: tuple[int, ...], taken: tuple[int, ...], there: Callable[..., np.ndarray], npz: Callable[..., str]
) -> None:
    made = {k: v.astype(np.float32) for k, v in arrays(shape=stored).items() if k in ("x_train", "x_test")}
    data = load_data(npz(**made), input_shape=taken)
    assert np.array_equal(everything(data.test)[0].numpy(), there(made["x_test"]))


def test_without_an_input_shape_three_axes_are_grey_images_and_five_go_as_they_are(
    npz: Callable[..., str],
) -> None:
    def floats(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {k: v.astype(np.float32) for k, v in arrays(shape=shape).items() if k in ("x_train", "x_test")}

    assert load_data(npz(**floats((6, 7)))).input_shape == (1, 6, 7)
    volumes = floats((3, 4, 8, 8))
    data = load_data(npz(**volumes))
    assert data.input_shape == (3, 4, 8, 8)
    assert np.array_equal(everything(data.test)[0].numpy(), volumes["x_test"])


def test_mean_and_std_go_by_the_first_axis_whatever_follows(npz: Callable[..., str]) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    for shape in ((3, 10), (3, 2, 4, 5)):
        made = {k: arrays(shape=shape)[k] for k in ("x_train", "x_test")}
        data = load_data(npz(**made), input_shape=shape, mean=mean, std=std)
        each = [torch.tensor(v).view(3, *[1] * (len(shape) - 1)) for v in (mean, std)]
        expected = (torch.from_numpy(made["x_test"]).float() / 255 - each[0]) / each[1]
        assert (everything(data.test)[0] - expected).abs().max() < 1e-6
        with pytest.raises(MintError, match=r"--mean has 2 values, but .* has 3 channels"):
            load_data(npz(**made), input_shape=shape, mean=[0.1, 0.2])


@pytest.mark.parametrize(
    ("stored", "taken", "message"),
    [
        ((1, 200), (1, 256), "samples of 1x200, but the network takes 1x256"),
        ((3, 8, 8), (3, 4, 8, 8), "images of 3x8x8, but the network takes 3x4x8x8. Reshape"),
        ((8, 8, 5), (7, 8, 8), "images of 8x8x5, but the network takes 7x8x8. Resize"),
        ((300,), (256,), "samples of 300, but the network takes 256"),
    ],
)
def test_a_misfit_is_told_in_the_shapes_as_they_were_given(
    stored: tuple[int, ...], taken: tuple[int, ...], message: str, npz: Callable[..., str]
) -> None:
    made = {k: arrays(shape=stored)[k] for k in ("x_train", "x_test")}
    with pytest.raises(MintError, match=f"x_train has {message}"):
        load_data(npz(**made), input_shape=taken)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01\x00v\x00{'descr'"]
)
def test_files_that_are_no_npz_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(MintError, match=r"set\.npz"):
        load_data(str(path))


def test_damaged_and_single_arrays_are_refused(npz: Callable[..., str], tmp_path: Path) -> None:
    path = Path(npz())
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    with pytest.raises(MintError, match="CRC"):
        load_data(str(path))
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(MintError, match="single array"):
        load_data(str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5, 0.5]}, "--mean has 2 values, but"),
        ({"std": [0.0]}, "--std must be above 0"),
        ({"mean": [float("nan")]}, "--mean must be finite"),
    ],
)
def test_impossible_mean_or_std_is_an_error(options: dict[str, list[float]], message: str) -> None:
    with pytest.raises(MintError, match=message):
        load_data("digits", **options)  # type: ignore[arg-type]


def test_unknown_specs_name_the_choices() -> None:
    with pytest.raises(
        MintError, match=r"Unknown data 'digts'\. Choose from: digits, FILE\.npz,.* cifar10:DIR"
    ):
        load_data("digts")
    with pytest.raises(MintError, match="No such folder: 'no/where'"):
        load_data("no/where")
    with pytest.raises(MintError, match=r"No such file: nowhere\.npz"):
        load_data("nowhere.npz")


# ---- torchvision sets


def test_mnist_files_load_through_torchvision(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = {
        "train": rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "t10k": np.zeros((10, 28, 28), np.uint8),
    }
    for part, images in pixels.items():
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x803, len(images), 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, len(labels)) + labels.tobytes()
        )
    data = load_data(f"mnist:{tmp_path}")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [27, 3, 10]
    assert data.input_shape == (1, 28, 28)
    assert torch.allclose(data.test[0][0], torch.tensor(-0.1307 / 0.3081))
    assert data.augmented is data.train


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn", "stl10"])
def test_a_missing_torchvision_set_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(MintError, match=f"No {name} in .*It must hold .*, from .") as error:
        load_data(f"{name}:{tmp_path}")
    assert "\n" not in str(error.value)
    with pytest.raises(MintError, match="No such folder"):
        load_data(f"{name}:{tmp_path}/nowhere")


# ---- folders


def folder(root: Path, *parts: str, per_class: int = 10, size: tuple[int, int] = (16, 16)) -> Path:
    for part in parts:
        for number, name in enumerate(("cat", "dog", "eel")):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                color = (50 * number, 10 * i, 200)
                Image.new("RGB", size, color).save(root / part / name / f"{i}.png")
    return root


def test_folders_with_all_three_parts(tmp_path: Path) -> None:
    data = load_data(str(folder(tmp_path, "train", "val", "test")), input_shape=(3, 16, 16))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 30, 30]
    assert data.classes == 3
    image, label = data.test[25]
    expected = (torch.tensor([100, 50, 200]).view(3, 1, 1) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert label == 2
    assert torch.allclose(image, expected.expand(3, 16, 16))
    assert torch.equal(everything(data.test)[0][25], image)
    assert isinstance(data.augmented, Augmented)


def test_without_test_val_is_the_test_split(tmp_path: Path) -> None:
    data = load_data(str(folder(tmp_path, "train", "val")), input_shape=(3, 16, 16))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [27, 3, 30]
    files = [[s.path(i) for i in range(len(s))] for s in (data.train, data.validation, data.test)]
    assert [{Path(p).parent.parent.name for p in split} for split in files] == [{"train"}, {"train"}, {"val"}]
    assert not set(files[0]) & set(files[1])
    assert load_data(str(tmp_path)).input_shape == (3, 224, 224)


def test_folder_images_are_resized_and_cut_from_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(10):
                Image.fromarray(wide).save(tmp_path / part / name / f"{i}.png")
    data = load_data(str(tmp_path), input_shape=(3, 28, 28), mean=[0.0], std=[1.0])
    assert torch.allclose(data.test[0][0], torch.ones(3, 28, 28))
    grey = load_data(str(tmp_path), input_shape=(1, 28, 28))
    assert torch.allclose(grey.test[0][0], torch.tensor((1 - 0.1307) / 0.3081))
    assert grey.augmented is grey.train


def test_bad_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MintError, match=r"needs train/ and test/ or val/.* it holds: nothing"):
        load_data(str(tmp_path))
    folder(tmp_path, "train", "test")
    with pytest.raises(MintError, match="the network takes 784"):
        load_data(str(tmp_path), input_shape=(784,))
    (tmp_path / "test" / "eel").rename(tmp_path / "test" / "fox")
    with pytest.raises(MintError, match="different class folders: "):
        load_data(str(tmp_path))
    (tmp_path / "test" / "fox").rename(tmp_path / "test" / "eel")
    (tmp_path / "deep.png").write_bytes(b"")
    with pytest.raises(MintError, match=r"deep\.png' is a file of another kind\. Choose from"):
        load_data(str(tmp_path / "deep.png"))
    for image in (tmp_path / "train" / "cat").iterdir():
        image.unlink()
    with pytest.raises(MintError, match="no folder of class folders with images"):
        load_data(str(tmp_path))


def saved(root: Path, name: str, image: Image.Image, **options: object) -> Path:
    """The image in each of two classes of two parts."""
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True, exist_ok=True)
            image.save(root / part / label / name, **options)
    return root


def pixels(root: Path, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    data = load_data(str(root), input_shape=(3, *size), mean=[0.0], std=[1.0])
    return torch.cat([everything(data.train)[0], everything(data.validation)[0]])


def test_gif_and_avif_are_images(tmp_path: Path) -> None:
    saved(tmp_path, "one.gif", Image.new("RGB", (8, 8), (200, 40, 0)))
    saved(
        tmp_path, "two.GIF", Image.new("P", (8, 8)), save_all=True, append_images=[Image.new("P", (8, 8), 1)]
    )
    count = 2
    if features.check("avif"):
        saved(tmp_path, "three.avif", Image.new("RGB", (8, 8), (200, 40, 0)))
        count = 3
    data = load_data(str(tmp_path), input_shape=(3, 8, 8))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [2 * count - 1, 1, 2 * count]
    assert "passed over" not in data.description
    values = pixels(tmp_path).mean((2, 3)).tolist()
    assert sum(v == pytest.approx([200 / 255, 40 / 255, 0], abs=0.02) for v in values) == 2 * (count - 1)
    assert sum(v == [0, 0, 0] for v in values) == 2  # the first of its frames


def test_files_that_are_no_images_are_counted_by_their_endings(tmp_path: Path) -> None:
    folder(tmp_path, "train", "test", per_class=4)
    for place in ("train/cat/a.heic", "train/cat/b.HEIC", "test/dog/c.heic", "train/eel/README"):
        (tmp_path / place).write_bytes(b"")
    for place in ("train/cat/.DS_Store", "train/notes.txt"):  # hidden, and in no class folder
        (tmp_path / place).write_bytes(b"")
    data = load_data(str(tmp_path), input_shape=(3, 16, 16))
    assert data.description.endswith("; 4 files passed over (.heic 3, no ending 1)")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [11, 1, 12]
    for image in (tmp_path / "train" / "cat").glob("*.png"):
        image.unlink()
    with pytest.raises(MintError, match=r"no valid file for the classes cat\. Passed over: \.heic 2"):
        load_data(str(tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    # EXIF 2.32, 4.6.4: what the rows and the columns of the stored image are in the upright one
    as_stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1], 8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    saved(tmp_path, "one.png", Image.fromarray(np.ascontiguousarray(as_stored)), exif=exif)
    expected = torch.from_numpy(upright).permute(2, 0, 1) / 255
    assert all(torch.equal(image, expected) for image in pixels(tmp_path, (6, 4)))


def test_broken_exif_data_leaves_the_image_as_it_is(tmp_path: Path) -> None:
    saved(tmp_path, "one.png", Image.new("RGB", (8, 8), (0, 0, 255)), exif=b"Exif\0\0II*\0no directory")
    assert torch.equal(pixels(tmp_path).mean((0, 2, 3)), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparent_colours_give_the_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    saved(tmp_path, "one.png", image, transparency=bytes([0, 128]))
    expected = torch.tensor([40, 50, 60]) / 255
    assert torch.equal(pixels(tmp_path).amax((0, 2, 3)), expected)
    assert torch.equal(pixels(tmp_path).amin((0, 2, 3)), expected)


# ---- without data


def test_synthetic_images_fall_as_one_over_f_with_unit_variance() -> None:
    images = synthetic_images(64, (3, 64, 64), seed=0)
    assert images.shape == (64, 3, 64, 64)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(images.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    amplitude = torch.fft.rfft2(images).abs().square().mean((0, 1)).sqrt()
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None])
    chosen = (frequency > 0) & (frequency < 0.5)
    x, y = frequency[chosen].log(), amplitude[chosen].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-1, abs=0.02)


def test_synthetic_images_repeat_by_seed_and_take_flat_shapes() -> None:
    assert torch.equal(synthetic_images(2, (1, 5, 6), seed=3), synthetic_images(2, (1, 5, 6), seed=3))
    assert not torch.equal(synthetic_images(2, (1, 5, 6), seed=3), synthetic_images(2, (1, 5, 6), seed=4))
    flat = synthetic_images(100, (7,), seed=0)
    assert flat.shape == (100, 7)
    assert torch.isfinite(synthetic_images(1, (1, 1, 1), seed=0)).all()
