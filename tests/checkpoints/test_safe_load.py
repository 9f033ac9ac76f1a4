"""Files that are broken, of another kind, or hostile: one clear line, and nothing in them runs."""

import importlib
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict

import hostile as files
import numpy as np
import pytest
import torch
from checkpoint_files import refuse, same, small
from torch import nn

from mint_compress.checkpoints.reading import read_checkpoint
from mint_compress.errors import MintError


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


def test_layers_made_of_source_code_are_no_layers(tmp_path):
    graph = files.Named("torchvision.models.feature_extraction", "DualGraphModule")
    (tmp_path / "a.pt").write_bytes(files.archive(files.steps(graph, b")\x81")))
    refuse(tmp_path / "a.pt", "DualGraphModule, which is not a layer")


def vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)


def convnext():
    from torchvision.models import ConvNeXt
    from torchvision.models.convnext import CNBlockConfig

    return ConvNeXt([CNBlockConfig(8, None, 2)], num_classes=3)


def mixer():
    mlp_mixer = pytest.importorskip("timm.models.mlp_mixer")
    return mlp_mixer.MlpMixer(num_classes=3, img_size=16, patch_size=8, num_blocks=1, embed_dim=8)


def timm_vit():
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    return vision_transformer.VisionTransformer(16, 8, num_classes=3, embed_dim=8, depth=1, num_heads=2)


@pytest.mark.parametrize("make", [vit, convnext, mixer, timm_vit])
def test_whole_modules_of_timm_and_torchvision(tmp_path, make):
    model = make()
    model.eval()
    torch.save(model, tmp_path / "a.pt")
    module = read_checkpoint(tmp_path / "a.pt").module
    assert repr(module) == repr(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))
    # what was read can be written again, and read by anybody
    torch.save(module, tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=False)
    assert type(getattr(again, "norm_layer", None)) is type(getattr(model, "norm_layer", None))


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


def test_one_message_names_all_that_must_be_trusted(tmp_path, monkeypatch):
    package = tmp_path / "ownpackage"
    for name, base in (("nn/tasks", "Sequential"), ("nn/blocks/conv", "Conv2d"), ("nn/blocks/bend", "ReLU")):
        file = package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(f"from torch import nn\nclass Own(nn.{base}):\n    pass\n")
    (package / "__init__.py").touch()
    (tmp_path / "ownsingle.py").write_text("from torch import nn\nclass Own(nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {
        n: importlib.import_module(n).Own
        for n in (
            "ownpackage.nn.tasks",
            "ownpackage.nn.blocks.conv",
            "ownpackage.nn.blocks.bend",
            "ownsingle",
        )
    }
    tasks, conv, bend, single = own.values()
    model = tasks(conv(3, 4, 3), bend(), nn.Flatten(), single(64, 5))
    torch.save(model, tmp_path / "a.pt")
    message = refuse(
        tmp_path / "a.pt",
        "needs ownpackage.nn.blocks.bend.Own and other classes that are not PyTorch's, of 4 modules. Only if "
        "you made this file: --trust ownpackage.nn --trust ownsingle imports these",
    )
    assert "nn.tasks" not in message
    # a package covers what lies in it
    module = read_checkpoint(tmp_path / "a.pt", trust=("ownpackage.nn", "ownsingle")).module
    assert [type(layer) for layer in module] == [conv, bend, nn.Flatten, single]
    # what no trust helps is said first
    model.extra = Runs(os.system, "true")
    torch.save(model, tmp_path / "a.pt")
    assert "--trust" not in refuse(tmp_path / "a.pt", "asks to run posix.system")


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
    from mint_compress.checkpoints.loading import load_model
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
