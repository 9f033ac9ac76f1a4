"""Layers that read some of what they are given: what they compute, how they are saved, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.headers import HEADER_KEY, checksum
from mint_compress.checkpoints.loading import load, load_model
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.nn.input_selection import (
    can_select,
    make_selecting_,
    restore_selecting_,
    selecting_layers,
)
from mint_compress.surgery.slicing import cut_
from mint_compress.zoo import BUILDERS

LAYERS = {
    "features": (lambda: nn.Linear(6, 3), (4, 6)),
    "tokens": (lambda: nn.Linear(6, 3, bias=False), (4, 5, 6)),
    "signal": (lambda: nn.Conv1d(6, 3, 3, padding=1), (4, 6, 9)),
    "image": (lambda: nn.Conv2d(6, 3, 3, stride=2, padding=1, padding_mode="circular"), (4, 6, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_inputs_computes_what_it_did_with_those_at_zero(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    holder, x = nn.Sequential(make()), torch.randn(shape)
    before = holder(x)
    weight = holder[0].weight
    layer = make_selecting_(holder[0])
    assert torch.equal(holder(x), before) and layer.weight is weight  # nothing is left out yet
    silent = copy.deepcopy(holder)
    with torch.no_grad():
        silent[0].weight[:, [0, 4]] = 0

    cut_(holder, "0", "selection", "in", 0, [0, 4])
    assert layer.selected.tolist() == [1, 2, 3, 5]
    assert layer.weight.shape[1] == 4
    torch.testing.assert_close(holder(x), silent(x))

    with torch.no_grad():
        silent[0].weight[:, [2, 5]] = 0
    cut_(holder, "0", "selection", "in", 0, [1, 3])  # counted among those that it still reads
    assert layer.selected.tolist() == [1, 3]
    torch.testing.assert_close(holder(x), silent(x))
    assert selecting_layers(holder) == ["0"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv1d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(6, 6, 3),
        NonDynamicallyQuantizableLinear(6, 6),
        nn.Bilinear(6, 6, 6),
        nn.Embedding(6, 6),
    ],
)
def test_other_layers_cannot_select(layer: nn.Module) -> None:
    assert not can_select(layer)


def narrow() -> nn.Module:
    return BUILDERS["mlp"](num_classes=4, hidden=(8, 6))


def selecting_mlp() -> nn.Module:
    torch.manual_seed(0)
    model = narrow().eval()
    cut_(model, "layers.0", "selection", "in", 0, range(5, 784))
    return model


def test_it_survives_our_file_and_pickle(tmp_path: Path) -> None:
    model, x = selecting_mlp(), torch.randn(3, 1, 28, 28)
    save(model, tmp_path / "a.safetensors", builder=Builder("zoo:mlp", {"num_classes": 4, "hidden": [8, 6]}))
    torch.save(model, tmp_path / "a.pt")
    for back in (
        load(tmp_path / "a.safetensors", builder=narrow),
        load_model(tmp_path / "a.pt").module,
        copy.deepcopy(model),
    ):
        assert selecting_layers(back) == ["layers.0"]
        assert back.get_submodule("layers.0").selected.tolist() == [0, 1, 2, 3, 4]
        assert torch.equal(back(x), model(x))
    y = x.clone()
    y.flatten(1)[:, 5:] = 7
    assert torch.equal(model(y), model(x))


def test_the_state_dict_keeps_its_names() -> None:
    before = narrow().state_dict().keys()
    assert selecting_mlp().state_dict().keys() == before | {"layers.0.selected"}


BAD: dict[str, Tensor] = {
    "beyond": torch.tensor([0, 1, 2, 3, 784]),
    "negative": torch.tensor([-1, 1, 2, 3, 4]),
    "twice": torch.tensor([0, 1, 1, 2, 3]),
    "descending": torch.tensor([4, 3, 2, 1, 0]),
    "fractions": torch.tensor([0.0, 1, 2, 3, 4]),
    "narrow": torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32),
    "table": torch.tensor([[0, 1, 2, 3, 4]]),
    "empty": torch.tensor([], dtype=torch.int64),
}


def rewritten(path: Path, tensors: dict[str, Tensor], **header: object) -> None:
    """The file with other tensors and header fields, and a checksum that agrees with them."""
    with safe_open(path, "pt") as file:
        old = json.loads(file.metadata()[HEADER_KEY])
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    new = {**old, **header}
    new["crc32"] = checksum({**kept, **tensors}, new)
    save_file({**kept, **tensors}, path, metadata={HEADER_KEY: json.dumps(new), "format": "pt"})


@pytest.mark.parametrize("name", BAD)
def test_a_file_cannot_select_what_is_not_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(selecting_mlp(), path, builder=Builder("zoo:mlp", {"num_classes": 4, "hidden": [8, 6]}))
    rewritten(path, {"layers.0.selected": BAD[name]})
    with pytest.raises(MintError, match="does not choose among the 784 channels of its layer"):
        load(path, builder=narrow)


@pytest.mark.parametrize(
    "names", [["layers.1"], ["nowhere"], ["layers"], [""], ["layers.0"] * 2, 7, [[]], [{}]]
)
def test_a_file_cannot_let_anything_select(names: object, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(BUILDERS["mlp"](), path, builder=Builder("zoo:mlp"))
    rewritten(path, {}, selecting=names)
    with pytest.raises(MintError) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)


def test_a_missing_selection_is_refused() -> None:
    model = BUILDERS["mlp"]()
    with pytest.raises(MintError, match=r"layers\.0\.selected does not choose"):
        restore_selecting_(model, ["layers.0"], {})
