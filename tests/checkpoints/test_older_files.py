"""Files of earlier versions: under the names that modules of this package had then, and in the first format.

``written_before`` holds one network, an MLP of which the first layer reads the first five of its inputs, as
version 0.1.0 wrote it before its modules were put into folders, and a plan of the same time.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import hostile
import pytest
import torch
from safetensors import safe_open
from torch import nn

from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.headers import HEADER_KEY
from mint_compress.checkpoints.loading import load_model
from mint_compress.errors import MintError
from mint_compress.nn.input_selection import Selecting, make_selecting_
from mint_compress.surgery.pruning_plan import PruningPlan

BEFORE = Path(__file__).with_name("written_before")
NOW, THEN = b"cmint_compress.nn.input_selection\n", b"cmint_compress.selection\n"


@pytest.mark.parametrize("name", ["selecting.pt", "format_1.safetensors", "format_2.safetensors"])
def test_files_of_an_earlier_version_load(name: str) -> None:
    loaded = load_model(BEFORE / name)
    first = loaded.module.get_submodule("layers.0")
    assert isinstance(first, Selecting) and isinstance(first, nn.Linear)
    assert first.selected.tolist() == [0, 1, 2, 3, 4]
    with safe_open(BEFORE / "format_2.safetensors", "pt") as file:
        assert set(file.keys()) == loaded.module.state_dict().keys()
        for key, tensor in loaded.module.state_dict().items():
            assert torch.equal(tensor, file.get_tensor(key))
    # the network as it is written out: five features, eight and six units, four classes
    x = torch.randn(3, 1, 28, 28)
    weights = loaded.module.state_dict()
    h = x.flatten(1)[:, :5]
    for layer in ("layers.0", "layers.2"):
        h = (h @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]).relu()
    expected = h @ weights["layers.4.weight"].T + weights["layers.4.bias"]
    torch.testing.assert_close(loaded.module(x), expected)
    if name != "selecting.pt":
        assert loaded.builder == Builder("zoo:mlp", {"num_classes": 4, "hidden": [8, 6]})
        assert loaded.plan == {"format": 1, "groups": []}


@pytest.mark.parametrize("made", [1, 2])
def test_they_are_of_the_formats_that_they_are_named_after(made: int) -> None:
    with safe_open(BEFORE / f"format_{made}.safetensors", "pt") as file:
        assert f'"format": {made}' in file.metadata()[HEADER_KEY]
    assert THEN in _pickle((BEFORE / "selecting.pt").read_bytes())


def test_a_plan_of_an_earlier_version_loads() -> None:
    text = (BEFORE / "pruned.plan.json").read_text()
    plan = PruningPlan.from_json(text)
    # 784-8-6-10 without half of its units: 784 * 4 + 4, 4 * 3 + 3, 3 * 10 + 10
    assert plan.parameters == (784 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10, 784 * 4 + 4 + 4 * 3 + 3 + 3 * 10 + 10)


LAYERS = {
    "Linear": (lambda: nn.Linear(6, 3), (4, 6)),
    "Conv1d": (lambda: nn.Conv1d(6, 3, 3), (4, 6, 9)),
    "Conv2d": (lambda: nn.Conv2d(6, 3, 3), (4, 6, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_found_under_the_old_name_of_their_module(name: str, tmp_path: Path) -> None:
    make, shape = LAYERS[name]
    model = nn.Sequential(make()).eval()
    make_selecting_(model[0])
    old = _renamed(hostile.saved(model), NOW, THEN)
    assert f"Selecting{name}".encode() in _pickle(old)
    (tmp_path / "a.pt").write_bytes(old)
    again = load_model(tmp_path / "a.pt").module
    assert type(again.get_submodule("0")) is type(model[0])
    x = torch.randn(shape)
    assert torch.equal(again(x), model(x))
    # what is read can be written, and is named as it is now
    assert NOW in _pickle(hostile.saved(again))


@pytest.mark.parametrize("name", [b"cmint_compress.selection.more\n", b"cmint_compress.unpickling\n"])
def test_no_other_old_name_is_let_in(name: bytes, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    make_selecting_(model[0])
    (tmp_path / "a.pt").write_bytes(_renamed(hostile.saved(model), NOW, name))
    with pytest.raises(MintError, match="a class that is not PyTorch's"):
        load_model(tmp_path / "a.pt")


def _pickle(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        return archive.read(name)


def _renamed(content: bytes, name: bytes, other: bytes) -> bytes:
    """The same archive, its pickle with another module's name in it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    pickled = members.pop("data.pkl")
    assert name in pickled
    return hostile.archive(pickled.replace(name, other), members)
