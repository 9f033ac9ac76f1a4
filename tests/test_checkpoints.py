"""Reading files that may be hostile, broken or merely unusual; writing files that load without pickle."""

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from mint_compress import checkpoints
from mint_compress.checkpoints import (
    Builder,
    builder_of,
    input_shape_of,
    read_checkpoint,
    remember_builder,
    save,
)
from mint_compress.errors import MintError
from mint_compress.zoo import BUILDERS


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).eval()


def refuse(path, match=None, **kwargs):
    with pytest.raises(MintError, match=match) as caught:
        read_checkpoint(path, **kwargs)
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def same(tensors, state):
    assert list(tensors) == list(state)
    for key, tensor in state.items():
        assert torch.equal(tensors[key], tensor), key


# ---------------------------------------------------------------- what can be read


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


# ---------------------------------------------------------------- no file, no checkpoint


def test_missing_folder_fifo_and_dangling_link(tmp_path):
    refuse(tmp_path / "none.pt", "No such file: .*none.pt")
    refuse(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path / "fifo", "not a regular file")
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    refuse(tmp_path / "link.pt", "link to .*gone.pt, which does not exist")
    refuse("a\0b", "Cannot read")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)), "not a PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"\x80\x02" + bytes(100), "truncated or damaged"),
        (struct.pack("<Q", 50) + b"{" + b"x" * 60, "truncated or damaged"),
        (struct.pack("<Q", 5000) + b"{" + b"x" * 60, "truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, match):
    (tmp_path / "a.pt").write_bytes(content)
    refuse(tmp_path / "a.pt", match)


def test_every_truncation_is_refused(tmp_path):
    for legacy in (False, True):
        torch.save(small().state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        whole = (tmp_path / "a.pt").read_bytes()
        for length in range(1, len(whole), 97):
            (tmp_path / "b.pt").write_bytes(whole[:length])
            refuse(tmp_path / "b.pt")


def test_a_flipped_byte_is_refused(tmp_path):
    torch.save(small().state_dict(), tmp_path / "a.pt")
    whole = bytearray((tmp_path / "a.pt").read_bytes())
    at = whole.find(small()[3].weight.detach().numpy().tobytes()) + 10
    whole[at] ^= 0x40
    (tmp_path / "a.pt").write_bytes(whole)
    refuse(tmp_path / "a.pt", "checksum of 'a/data/")


def test_flipped_bytes_of_the_old_format_never_escape_as_another_error(tmp_path):
    torch.save(small().state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.integers(0, 900, 150):
        flipped = bytearray(whole)
        flipped[at] = generator.integers(256)
        (tmp_path / "b.pt").write_bytes(flipped)
        try:
            read_checkpoint(tmp_path / "b.pt")
        except MintError:
            refused += 1
    assert refused > 50


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(tmp_path / "a.zip", "without a PyTorch checkpoint")
    torch.save(small().state_dict(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refuse(tmp_path / "b.pt", "compressed archive")


def test_torchscript_and_exported_programs(tmp_path):
    torch.jit.save(torch.jit.trace(small(), torch.randn(1, 3, 6, 6)), tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", r"is TorchScript.*torch.save\(model.state_dict")
    torch.export.save(torch.export.export(small(), (torch.randn(1, 3, 6, 6),)), tmp_path / "a.pt2")
    refuse(tmp_path / "a.pt2", r"\(.pt2\).*torch.save\(model.state_dict")


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


# ---------------------------------------------------------------- hostile files


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile(canary, place):
    evil = place(canary)
    state = small().state_dict()
    layer = small()
    layer.extra = evil
    return {
        "alone": evil,
        "inside": OrderedDict(state, evil=evil),
        "beside": {"state_dict": state, "args": evil},
        "whole": layer,
        "wrapped": {"model": layer},
    }


CALLS = {
    "system": lambda canary: Runs(os.system, f"touch {canary}"),
    "eval": lambda canary: Runs(eval, f"open({str(canary)!r}, 'w')"),
    "popen": lambda canary: Runs(subprocess.Popen, ["touch", str(canary)]),
    "open": lambda canary: Runs(open, str(canary), "w"),
    "torch": lambda canary: Runs(torch.save, {}, str(canary)),
    "layer package": lambda canary: Runs(torch.nn.functional.relu, torch.ones(1)),
}


@pytest.mark.parametrize("call", ["system", "eval", "popen", "open", "torch"])
def test_the_hostile_files_would_run_if_they_were_trusted(tmp_path, call):
    canary = tmp_path / "canary"
    torch.save(hostile(canary, CALLS[call])["beside"], tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=False)
    if call == "popen":
        loaded["args"].wait()
    assert canary.exists()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["alone", "inside", "beside", "whole", "wrapped"])
@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle2", "pickle4"])
def test_code_is_never_run(tmp_path, call, where, writer):
    canary = tmp_path / "canary"
    content = hostile(canary, CALLS[call])[where]
    file = tmp_path / "a.pt"
    if writer.startswith("pickle"):
        file.write_bytes(pickle.dumps(content, protocol=int(writer[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "zip")
    message = refuse(file, trust=("anything",))
    if writer == "zip":
        assert "so it was not read" in message
        assert "--trust" not in message
    assert not canary.exists()


def test_a_stride_trick_is_refused_before_any_arithmetic(tmp_path):
    torch.save({"a": torch.ones(4), "b": torch.zeros(1).expand(200_000, 200_000)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 3000
    refuse(tmp_path / "a.pt", r"'b' declares \(200000, 200000\) elements and has 4 bytes")


def test_a_stride_trick_inside_a_module(tmp_path):
    model = small()
    model[3].weight = nn.Parameter(torch.zeros(1, 1).expand(200_000, 200_000))
    torch.save(model, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "'3.weight' declares")


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_unusual_tensors(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "'a' is a sparse, quantised, empty or wrapped tensor")


OWN = """
import pathlib
from torch import nn
pathlib.Path({canary!r}).touch()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

class Settings:
    pass

def run(*args):
    pathlib.Path({canary!r} + "2").touch()
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's that leaves a trace when it is imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "ownnet.py").write_text(textwrap.dedent(OWN.format(canary=str(tmp_path / "canary"))))
    monkeypatch.chdir(tmp_path / "code")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    import ownnet

    yield ownnet
    sys.modules.pop("ownnet", None)


def test_custom_classes_need_trust(tmp_path, own_module, monkeypatch):
    model = own_module.Net()
    torch.save(model, tmp_path / "a.pt")
    del sys.modules["ownnet"]
    # only the working folder is left to find it
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != os.getcwd()])
    (tmp_path / "canary").unlink()
    message = refuse(tmp_path / "a.pt", "needs ownnet.Net, a class that.*--trust ownnet imports")
    assert "Only if you made this file" in message
    assert not (tmp_path / "canary").exists()
    path = list(sys.path)
    module = read_checkpoint(tmp_path / "a.pt", trust=["ownnet"]).module
    assert (tmp_path / "canary").exists()
    assert sys.path == path
    same(module.state_dict(), model.state_dict())


def test_trust_covers_layers_only(tmp_path, own_module):
    model = own_module.Net()
    for extra in (Runs(own_module.run, 1), own_module.Settings()):
        model.extra = extra
        torch.save(model, tmp_path / "a.pt")
        refuse(tmp_path / "a.pt", "ownnet.(run|Settings), which is not a layer", trust=["ownnet"])
    assert not (tmp_path / "canary2").exists()


def test_classes_of_a_script(tmp_path, monkeypatch):
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "Net", type("Net", (nn.Module,), {"__module__": "__main__"}), raising=False)
    torch.save(script.Net(), tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "__main__.Net, a class of the script that wrote it")


def test_missing_module_of_trust(tmp_path, own_module, monkeypatch):
    torch.save(own_module.Net(), tmp_path / "a.pt")
    del sys.modules["ownnet"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("code")])
    refuse(tmp_path / "a.pt", "No module named 'ownnet'. Install", trust=["ownnet"])


def test_bad_files_are_refused_before_torchvision_is_imported(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"<html>")
    torch.save(Runs(os.system, "true"), tmp_path / "b.pt")
    code = f"""
    import sys
    from mint_compress.models import load_model
    from mint_compress.errors import MintError
    for name in ("a.pt", "b.pt", "c.pt"):
        try:
            load_model({str(tmp_path)!r} + "/" + name)
        except MintError as error:
            print(error)
    assert not {{"torchvision", "timm"}} & set(sys.modules)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    )
    assert len(ran.stdout.splitlines()) == 3


# ---------------------------------------------------------------- writing


def test_a_saved_file_holds_what_was_saved(tmp_path):
    model = small()
    remember_builder(model, Builder("zoo:mlp", {"num_classes": 5}), (3, 6, 6))
    save(model, tmp_path / "a.safetensors", plan={"kept": [1, 2]})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert {k: v.tolist() for k, v in checkpoint.tensors.items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    header = checkpoint.header
    assert header.pop("crc32") > 0
    assert header == {
        "format": 1,
        "builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 5}},
        "input_shape": [3, 6, 6],
        "shapes": {
            "0": {"in_channels": 3, "out_channels": 4, "groups": 1},
            "1": {"num_features": 4},
            "3": {"in_features": 64, "out_features": 5},
        },
        "ties": {},
        "plan": {"kept": [1, 2]},
    }
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_flipped_byte_of_a_saved_file(tmp_path):
    save(small(), tmp_path / "a.safetensors")
    whole = bytearray((tmp_path / "a.safetensors").read_bytes())
    whole[-3] ^= 1
    (tmp_path / "a.safetensors").write_bytes(whole)
    refuse(tmp_path / "a.safetensors", "checksum of its tensors is wrong")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"format": 2}, "format 2, and this version reads up to 1. Update"),
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
    assert checkpoint.header["ties"] == {"1.weight": "0.weight"}
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
    monkeypatch.setattr(checkpoints.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
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
