"""Networks of several inputs: the operations on them, and the whole way from loaders to a checked file."""

# mypy: disable-error-code="arg-type,union-attr,operator,override,no-untyped-call,no-untyped-def"

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from mint_compress.compression import compress
from mint_compress.data.batching import batches
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError
from mint_compress.exporting.comparison import compare_files
from mint_compress.exporting.protocol import arrays, find_exporter
from mint_compress.importance import MutualInformationImportance
from mint_compress.nn.counting import layer_macs
from mint_compress.nn.io import (
    by_position,
    concatenate,
    count,
    describe,
    is_single,
    of_batch,
    run,
    select,
    shape_of,
    split,
    tensors,
)
from mint_compress.reporting.records import ReceiptCounts
from mint_compress.settings import Benchmark
from mint_compress.training.evaluation import accuracy

MODULE = """
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

def task(n, seed):
    # the class is a bright colour, moved on by one where the switch is on: neither input tells it alone
    generator = torch.Generator().manual_seed(seed)
    colour, switch = torch.randint(4, (n,), generator=generator), torch.randint(2, (n,), generator=generator)
    images = torch.randn(n, 4, 8, 8, generator=generator) * 0.5
    images[torch.arange(n), colour] += 2
    return images, torch.nn.functional.one_hot(switch, 2).float(), (colour + switch) % 4

class Pairs(Dataset):
    def __init__(self, n, seed, named):
        self.rows, self.named = task(n, seed), named
    def __len__(self):
        return len(self.rows[2])
    def __getitem__(self, i):
        image, switch, label = (x[i] for x in self.rows)
        # not in the order of the network's arguments
        return ({"mask": switch, "image": image} if self.named else (image, switch > 0)), label

def made(named):
    sets = [Pairs(n, seed, named) for seed, n in enumerate((256, 64, 128))]
    return DataLoader(sets[0], batch_size=32, shuffle=True), sets[1], DataLoader(sets[2], batch_size=50)

def by_position(): return made(False)
def by_name(): return made(True)
IMAGES, SWITCHES, LABELS = task(8, 0)
def uneven(): return [[((IMAGES, SWITCHES[:7]), LABELS)]] * 3
def whole_numbers(): return [[((IMAGES.long(), SWITCHES.long()), LABELS)]] * 3
def infinite(): return [[({"a": IMAGES, "b": SWITCHES / 0}, LABELS)]] * 3
def nested(): return [[((IMAGES, (SWITCHES, SWITCHES)), LABELS)]] * 3
"""


class TwoInputs(nn.Module):
    """An image and a switch, joined by concatenation; the switch also shifts the image's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.side = nn.Linear(2, 24)
        self.hidden = nn.Linear(48, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(image)).relu()).relu().mean((2, 3))
        x = torch.cat([x, self.side(mask).relu()], 1)
        logits: Tensor = self.head(self.hidden(x).relu())
        return logits


class KeywordOnly(TwoInputs):
    def forward(self, *, image: Tensor, scale: float = 1.0, mask: Tensor) -> Tensor:
        return super().forward(image * scale, mask)


class Variadic(TwoInputs):
    def forward(self, *inputs: Tensor) -> Tensor:
        image, switch = inputs  # of booleans
        return super().forward(image, switch.to(image.dtype))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "two_inputs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "two_inputs:"
    sys.modules.pop("two_inputs", None)


def trained(kind: type[nn.Module], source) -> nn.Module:
    """Adam, until it knows the task."""
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(8):
        for inputs, labels in batches(source, 64):
            loss = nn.functional.cross_entropy(run(model, inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


A, B = torch.arange(10.0).view(5, 2), torch.arange(5)
KINDS = {"one": A, "tuple": (A, B), "dict": {"b": B, "a": A}}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_split_and_put_together_again(kind: str) -> None:
    inputs = KINDS[kind]
    parts = [of_batch(batch) for batch in split(inputs, 2)]
    assert [count(part) for part in parts] == [2, 2, 1]
    assert all(type(part) is type(inputs) for part in parts)
    again = concatenate(parts)
    assert all(torch.equal(x, y) for x, y in zip(tensors(again), tensors(inputs), strict=True))
    if kind == "dict":
        assert list(again) == ["b", "a"]
    picked = tensors(select(inputs, torch.tensor([4, 0])))
    assert torch.equal(picked[-1 if kind == "dict" else 0], A[[4, 0]])


def test_shapes() -> None:
    shapes = [shape_of(inputs) for inputs in KINDS.values()]
    assert shapes == [(2,), ((2,), ()), {"b": (), "a": (2,)}]
    assert [is_single(shape) for shape in shapes] == [True, False, False]
    assert is_single(()) and is_single((3, 32, 32))
    assert describe((3, 4, 5)) == "3x4x5" and describe(()) == "scalar"
    assert describe(((3, 4, 5), (10,))) == "3x4x5 + 10"
    assert describe({"x": (3, 4), "mask": (10,)}) == "x 3x4 + mask 10"


def test_what_stands_first_in_a_batch_are_the_inputs() -> None:
    assert of_batch(A) is A and of_batch((A, B)) is A and of_batch([A, B]) is A
    assert of_batch(([A, B], B)) == (A, B)
    assert of_batch({"a": A}) == {"a": A} and of_batch([{"a": A}, B]) == {"a": A}


def test_a_dict_goes_by_position_for_a_while_in_copies_too() -> None:
    model = KeywordOnly().eval()
    image, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 2)
    named = {"mask": mask, "image": image}
    wanted = model(**named)
    with by_position(model, named) as inputs:
        twin = copy.deepcopy(model)
        assert inputs == (mask, image)
        assert torch.equal(model(*inputs), wanted)
        with torch.no_grad():
            twin.head.bias.add_(1)
        # the copy computes with its own weights
        assert torch.allclose(twin(*inputs), wanted + 1)
        assert torch.equal(model(*inputs), wanted)
    assert "forward" not in vars(model)
    assert torch.equal(model(**named), wanted)


def test_macs_of_a_dict_and_of_a_tuple() -> None:
    model = TwoInputs()
    image, mask = torch.randn(3, 4, 8, 8), torch.randn(3, 2)
    wanted = {
        "first": 64 * 36 * 24, "second": 64 * 216 * 24, "side": 48, "hidden": 48 * 32, "head": 128
    }  # fmt: skip
    assert layer_macs(model, (image, mask)) == layer_macs(model, {"mask": mask, "image": image}) == wanted


@pytest.mark.parametrize("named", [False, True])
def test_data_of_several_inputs(spec: str, named: bool) -> None:
    data = load_data(spec + ("by_name" if named else "by_position"))
    shapes = {"mask": (2,), "image": (4, 8, 8)} if named else ((4, 8, 8), (2,))
    assert data.input_shape == shapes
    said = "mask 2 + image 4x8x8" if named else "4x8x8 + 2"
    assert f"256 train, 64 validation, 128 test images of {said} in 4 classes" in data.description
    inputs: Any
    inputs, labels = data.calibration(40, seed=3)
    assert torch.bincount(labels).tolist() == [10] * 4
    image, mask = (inputs["image"], inputs["mask"]) if named else inputs
    # the rows still belong together
    assert torch.equal((image.mean((2, 3)).argmax(1) + mask.int().argmax(1)) % 4, labels)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("uneven", r"shapes \(8, 4, 8, 8\), \(7, 2\), \(8,\) in one batch. Each must have as many samples"),
        ("whole_numbers", "gives torch.int64, torch.int64 images. Give normalised float32"),
        ("infinite", "NaN or infinite"),
        ("nested", "inputs are a tensor, or a tuple or dict of tensors"),
    ],
)
def test_inputs_that_do_not_fit_together(spec: str, function: str, message: str) -> None:
    with pytest.raises(MintError, match=message) as caught:
        load_data(spec + function).calibration(4, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "named"), [(KeywordOnly, True), (Variadic, False)])
def test_from_loaders_to_a_checked_file(
    spec: str, tmp_path: Path, kind: type[nn.Module], named: bool
) -> None:
    data = load_data(spec + ("by_name" if named else "by_position"))
    model = trained(kind, data.train)
    assert accuracy(model, data.test) > 0.95
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned, report = compress(
        model, data, ratio=0.5, round_to=1, output=tmp_path / "small.onnx", calibration_images=128, epochs=1,
        lr=0.02, device="cpu", provider="cpu", bench_batch=3, bench_seconds=0.1,
    )  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert report.ratio.removed >= 0.49
    left = sum(p.numel() for p in pruned.parameters())
    assert report.receipt == ReceiptCounts(left, left, left)
    assert report.parity.max_rel <= 1e-4 and report.parity.top1 == 1
    assert report.accuracy.finetuned > 0.9
    assert report.speedup is not None
    widths = (pruned.first.out_channels, pruned.second.out_channels, pruned.side.out_features)
    assert widths[1] + widths[2] == pruned.hidden.in_features < 48
    names = ["mask", "image"] if named else ["x0", "x1"]
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert [item.name for item in graph.input] == names
    assert {item.type.tensor_type.shape.dim[0].dim_param for item in graph.input} == {"batch"}
    # what came out runs on any batch, outside of our own checks too
    session = find_exporter("small.onnx").open(tmp_path / "small.onnx", device="cpu")
    inputs, _ = next(iter(batches(data.test, 64)))
    ours = session.run(arrays(session, inputs))[0]
    torch.testing.assert_close(torch.from_numpy(ours), run(pruned, inputs).detach(), rtol=1e-3, atol=1e-4)
    if named:
        with pytest.raises(MintError, match="has an input 'mask'; the data has image"):
            arrays(session, {"image": torch.zeros(1, 4, 8, 8)})
    how = Benchmark(provider="cpu", seconds=0.05)
    (timed,) = compare_files([tmp_path / "small.onnx"], how).exports
    assert timed.latency_ms.runs >= 3
    header = json.loads((tmp_path / "small.json").read_text())
    assert re.search(r"4x8x8", " ".join(header["notes"]))


def test_estimators_of_samples_and_the_importance_take_a_dict(spec: str) -> None:
    data = load_data(spec + "by_name")
    model = trained(TwoInputs, data.train)
    _, report = compress(
        model,
        data,
        ratio=0.3,
        estimator="knn",
        samples_per_class=12,
        groups=4,
        round_to=1,
        epochs=0,
        device="cpu",
    )
    assert report.ratio.removed >= 0.29
    importance = MutualInformationImportance(model, [data.calibration(64, seed=0)])
    assert {g.name for g in importance.groups if g.prunable} == {"first", "second", "side", "hidden"}
