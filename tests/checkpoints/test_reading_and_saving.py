"""State_dicts in all their wrappings; safetensors that load without pickle."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import refuse, same, small
from safetensors import safe_open
from torch import nn

from mint_compress.checkpoints import saving
from mint_compress.checkpoints.builders import Builder, builder_of, input_shape_of, remember_builder
from mint_compress.checkpoints.headers import HEADER_KEY, Header
from mint_compress.checkpoints.reading import read_checkpoint
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.zoo import BUILDERS


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrapper", [None, "state_dict", "model", "model_state_dict", "state_dict_ema", "net"]
)
def test_wrappers_come_off(tmp_path, wrapper, legacy):
    state = small().state_dict()
    whole = state if wrapper is None else {"epoch": 3, wrapper: state, "optimizer": {"state": {}}}
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    same(checkpoint.tensors, state)
    assert (checkpoint.module, checkpoint.arch, checkpoint.header) == (None, None, None)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_come_off(tmp_path, prefix):
    state = small().state_dict()
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "a.pt")
    same(read_checkpoint(tmp_path / "a.pt").tensors, state)


def test_prefix_of_a_submodule_stays(tmp_path):
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(3)}
    torch.save(state, tmp_path / "a.pt")
    same(read_checkpoint(tmp_path / "a.pt").tensors, state)


def test_averaged_and_inner_compiled_models(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(small())
    torch.save(averaged.state_dict(), tmp_path / "a.pt")
    same(read_checkpoint(tmp_path / "a.pt").tensors, small().state_dict())
    torch.save({"0._orig_mod.weight": torch.ones(2), "1.weight": torch.ones(1)}, tmp_path / "b.pt")
    assert list(read_checkpoint(tmp_path / "b.pt").tensors) == ["0.weight", "1.weight"]


def test_arch_is_reported(tmp_path):
    torch.save({"arch": "vgg16_cifar", "state_dict": small().state_dict()}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").arch == "vgg16_cifar"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32(tmp_path, dtype):
    model = small().to(dtype)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.float32, torch.int64}
    assert torch.equal(checkpoint.tensors["0.weight"], model[0].weight.float())
    assert checkpoint.notes == (f"{str(dtype)[6:]} weights converted to float32",)


def test_plain_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = {f"module.{k}": v for k, v in small().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.header is None
    assert {k: v.tolist() for k, v in checkpoint.tensors.items()} == {
        k.removeprefix("module."): v.tolist() for k, v in state.items()
    }


def test_symbolic_links_are_followed(tmp_path):
    torch.save(small().state_dict(), tmp_path / "blob")
    (tmp_path / "a.pt").symlink_to(tmp_path / "blob")
    same(read_checkpoint(tmp_path / "a.pt").tensors, small().state_dict())


def test_whole_module_of_torch_layers(tmp_path):
    model = small()
    torch.save(nn.DataParallel(model), tmp_path / "a.pt")
    module = read_checkpoint(tmp_path / "a.pt").module
    assert repr(module) == repr(model)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_training_scripts_leave_beside_the_weights(tmp_path, legacy):
    state = small().state_dict()
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(93.5), "state_dict": state}
    torch.save(beside, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    same(read_checkpoint(tmp_path / "a.pt").tensors, state)


def test_layers_of_the_zoo_need_no_trust(tmp_path):
    model = BUILDERS["mlp"](hidden=(4,))
    remember_builder(model, Builder("zoo:mlp", {"hidden": [4]}), (1, 28, 28))
    torch.save(model, tmp_path / "a.pt")
    assert type(read_checkpoint(tmp_path / "a.pt").module).__name__ == "MLP"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds a list"),
        ({}, "it holds nothing"),
        ({"epoch": 3, "lr": 0.1}, "it holds epoch, lr"),
        ({"a": torch.ones(1), "b": 3}, "it holds a, b"),
        (torch.ones(3), "holds a Tensor"),
    ],
)
def test_no_weights(tmp_path, content, match):
    torch.save(content, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", match)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(tmp_path, value):
    model = small()
    with torch.no_grad():
        model[1].running_var[2] = value
        model[3].bias[0] = value
    for content in (model.state_dict(), model, model.half().state_dict()):
        torch.save(content, tmp_path / "a.pt")
        refuse(tmp_path / "a.pt", "1 of 4 values of '1.running_var' are NaN or infinite")


def test_float64_beyond_float32(tmp_path):
    torch.save({"w": torch.full((2,), 1e300, dtype=torch.float64)}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "2 of 2 values of 'w'")


def test_a_saved_file_holds_what_was_saved(tmp_path):
    model = small()
    remember_builder(model, Builder("zoo:mlp", {"num_classes": 5}), (3, 6, 6))
    save(model, tmp_path / "a.safetensors", plan={"kept": [1, 2]})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert {k: v.tolist() for k, v in checkpoint.tensors.items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    assert header.pop("crc32") > 0
    assert header == {
        "format": 2,
        "builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 5}},
        "input_shape": [3, 6, 6],
        "shapes": {
            "0": {"in_channels": 3, "out_channels": 4, "groups": 1},
            "1": {"num_features": 4},
            "3": {"in_features": 64, "out_features": 5},
        },
        "selecting": [],
        "separate": [],
        "ties": {},
        "plan": {"kept": [1, 2]},
    }
    builder, ties = Builder("zoo:mlp", {"num_classes": 5}), {}
    assert checkpoint.header == Header(builder, (3, 6, 6), header["shapes"], (), (), ties, {"kept": [1, 2]})
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_flipped_byte_of_a_saved_file(tmp_path):
    save(small(), tmp_path / "a.safetensors")
    whole = bytearray((tmp_path / "a.safetensors").read_bytes())
    whole[-3] ^= 1
    (tmp_path / "a.safetensors").write_bytes(whole)
    refuse(tmp_path / "a.safetensors", "checksum of its tensors and header is wrong")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"format": 3}, "format 3, and this version reads up to 2. Update"),
        ({"format": 0}, "without a valid mint_compress header"),
        ({"format": "x"}, "without a valid mint_compress header"),
        ([], "without a valid mint_compress header"),
        ({"format": 1}, "checksum"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path, header, match):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"mint_compress": json.dumps(header)})
    refuse(tmp_path / "a.safetensors", match)


def test_shared_and_overlapping_tensors(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    # one buffer under two parameters, and the same memory under two parameters
    flat = torch.randn(8)
    model[1].bias, model[2].bias = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    model[3].weight = nn.Parameter(model[2].weight.data)
    save(model, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.header.ties == {"1.weight": "0.weight"}
    state = model.state_dict()
    assert set(checkpoint.tensors) == set(state) - {"1.weight"}
    assert all(torch.equal(t, state[k]) for k, t in checkpoint.tensors.items())


def test_save_keeps_the_dtype_and_leaves_the_model_alone(tmp_path):
    model = small().half().to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(model, tmp_path / "a.safetensors")
    from safetensors.torch import load_file

    assert load_file(tmp_path / "a.safetensors")["0.weight"].dtype == torch.float16
    same(model.state_dict(), before)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save(small(), file)
    old = file.read_bytes()
    monkeypatch.setattr(saving.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(MintError, match="disk full"):
        save(nn.Linear(2, 2), file)
    assert file.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_save_into_a_missing_folder(tmp_path):
    with pytest.raises(MintError, match="does not exist"):
        save(small(), tmp_path / "none" / "a.safetensors")


def test_builder_survives_deepcopy():
    import copy

    model = small()
    assert (builder_of(model), input_shape_of(model)) == (None, None)
    remember_builder(model, Builder("zoo:mlp"), [1, 28, 28])
    twin = copy.deepcopy(model)
    assert (builder_of(twin), input_shape_of(twin)) == (Builder("zoo:mlp"), (1, 28, 28))


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    save(BUILDERS["mlp"](), tmp_path / "mlp.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "mlp.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
