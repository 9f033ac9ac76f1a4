"""Files that are hostile, broken or of another kind: written by the tests, never read outside of them."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.checkpoints.builders import Builder, remember_builder
from mint_compress.checkpoints.headers import HEADER_KEY, checksum
from mint_compress.checkpoints.saving import save
from mint_compress.nn.input_selection import make_selecting_
from mint_compress.zoo import BUILDERS


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Named:
    """Pickles as a call of a function that need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.line = f"c{module}\n{name}\n".encode()


def steps(*parts: bytes | Named | int | str) -> bytes:
    """A pickle of protocol 2 written by hand: opcodes, names, numbers and words."""
    out = b"\x80\x02"
    for part in parts:
        if isinstance(part, Named):
            out += part.line
        elif isinstance(part, int):
            out += b"\x8a\x09" + part.to_bytes(9, "little", signed=True)
        elif isinstance(part, str):
            out += b"X" + struct.pack("<I", len(part)) + part.encode()
        else:
            out += part
    return out + b"."


def archive(data: bytes, records: Mapping[str, bytes] | None = None, *, root: str = "a") -> bytes:
    """What torch.save would have written around a pickle; its checksums are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr(f"{root}/data.pkl", data)
        for name, content in {"byteorder": b"little", "version": b"3\n", **(records or {})}.items():
            elsewhere = name.startswith(("/", "../", "a/", "b/"))
            made.writestr(name if elsewhere else f"{root}/{name}", content)
    return stream.getvalue()


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """The bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def tensor_steps(elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of ``{"w": tensor}`` whose tensor lies anywhere in a storage of ``elements`` floats."""
    parts: list[bytes | Named | int | str] = [b"}", "w", Named("torch._utils", "_rebuild_tensor_v2"), b"("]
    parts += [b"(", "storage", Named("torch", "FloatStorage"), "0", "cpu", elements, b"tQ", offset]
    parts += [b"(", *size, b"t(", *stride, b"t\x89", Named("collections", "OrderedDict"), b")RtRs"]
    return steps(*parts)


def safetensors(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A file of the safetensors format whose header is whatever one likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def rewrite(source: str | Path, target: str | Path, change: Mapping[str, Any]) -> None:
    """A file of ours with another header, whose checksum is right again."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, "pt") as file:
        header = {**json.loads(file.metadata()[HEADER_KEY]), **change}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    header = json.loads(json.dumps(header))
    if "crc32" not in change:
        header["crc32"] = checksum(tensors, header)
    save_file(tensors, target, {HEADER_KEY: json.dumps(header)})


def own(path: Path) -> Path:
    """A valid file of ours, 9 kB: an MLP with three hidden units."""
    model = BUILDERS["mlp"](hidden=(3,))
    remember_builder(model, Builder("zoo:mlp", {"hidden": [3]}), (1, 28, 28))
    save(model, path, plan={"format": 1, "groups": []})
    return path


def small() -> nn.Sequential:
    """A network that no builder makes."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def flipped(content: bytes, at: int, mask: int = 1) -> bytes:
    """One byte changed."""
    changed = bytearray(content)
    changed[at] ^= mask
    return bytes(changed)


def pickles(canary: Path) -> Iterator[tuple[str, bytes]]:
    """What would run code, or take all memory, if a pickle were done as it says."""
    state = small().state_dict()
    touch = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w')"
    yield "nested.pt2", program_with_a_pickle(canary)
    yield "system.pt", saved({"state_dict": state, "args": Runs(os.system, touch)})
    yield "system_legacy.pt", saved({"state_dict": state, "args": Runs(os.system, touch)}, legacy=True)
    yield "system_plain.pkl", pickle.dumps(Runs(os.system, touch), protocol=2)
    yield "system_protocol_0.pt", b"\x80\x02" + pickle.dumps(Runs(os.system, touch), protocol=0)
    yield "system_protocol_4.pt", pickle.dumps(Runs(os.system, touch), protocol=4)
    yield "eval.pt", saved(OrderedDict(state, evil=Runs(eval, write)))
    yield "exec.pt", saved(Runs(exec, write))
    yield "exec_legacy.pt", saved(Runs(exec, write), legacy=True)
    yield "popen.pt", saved(Runs(subprocess.Popen, ["touch", str(canary)]))
    yield "write_file.pt", archive(steps(Named("torchvision.io", "write_file"), b"(", str(canary), b"NtR"))
    yield "hub.pt", archive(steps(Named("torch.hub", "load"), b"(", "owner/repository", "model", b"tR"))
    yield "torch_load.pt", archive(steps(Named("torch", "load"), "other.pt", b"\x85R"))
    yield "import.pt", archive(steps(Named("importlib", "import_module"), "antigravity", b"\x85R"))
    yield "getattr.pt", archive(steps(Named("builtins", "getattr"), Named("os", "x"), "system", b"\x86R"))
    partial_of = (Named("functools", "partial"), Named("os", "system"))
    yield "partial.pt", archive(steps(*partial_of, b"\x85R"))
    yield "partial_of_data.pt", archive(steps(partial_of[0], "system", b"\x85R"))
    yield "python2.pt", archive(steps(Named("__builtin__", "eval"), write, b"\x85R"))
    linear = Named("torch.nn.modules.linear", "Linear")
    yield "a_layer_is_called.pt", archive(steps(linear, 10**6, 10**6, b"\x86R"))
    yield "a_layer_is_made_of_something.pt", archive(steps(linear, 10**6, 10**6, b"\x86\x81"))
    yield (
        "a_layer_is_called_for_it.pt",
        archive(
            steps(Named("torch._tensor", "_rebuild_from_type_v2"), b"(", linear, Named("torch", "Tensor"))[
                :-1
            ]
            + steps(10**6, 10**6, b"\x86}tR")[2:]
        ),
    )
    yield "function_is_called.pt", archive(steps(Named("torch.nn.functional", "relu"), 1, b"\x85R"))
    yield "bytearray.pt", archive(steps(Named("builtins", "bytearray"), 10**11, b"\x85R"))
    yield (
        "bytearray_legacy.pt",
        saved({}, legacy=True)[:14] + steps(Named("builtins", "bytearray"), 10**11, b"\x85R"),
    )
    yield "tensor_by_size.pt", archive(steps(Named("torch", "FloatTensor"), 10**6, 10**6, b"\x86R"))
    yield "hashed_for_ever.pt", archive(steps(b"}", 1, b"\x85", b"q\x00h\x00\x86" * 60, 1, b"s"))
    yield "many_steps.pt", archive(steps(b"(" + b"N" * (5 * 2**20) + b"t"))
    yield "of_itself.pt", archive(steps(b"}q\x00", "model", b"h\x00s"))
    yield "dicts_in_dicts.pt", saved({"model": {"model": {"model": nn.Linear(2, 2)}}})
    yield "keys_are_layers.pt", saved({nn.Linear(2, 2): 1, torch.ones(1): 2})
    yield "key_is_no_text.pt", archive(weight_called(b"\xed\xa0\x80"), {"data/0": bytes(40)})
    dictionary = Named("collections", "OrderedDict")
    shadow = steps(dictionary, b")R}", "items", 3, b"s}", "get", 3, b"sbb")
    yield "methods_of_a_dict_are_numbers.pt", archive(shadow)
    inner = Named("torch._utils", "_rebuild_tensor_v2")
    whole = tensor_steps(10, 0, (5, 2), (2, 1))
    call = whole[whole.index(inner.line) + len(inner.line) : whole.rindex(b"Rs.")]
    shadow = steps(b"}", "w", Named("torch._tensor", "_rebuild_from_type_v2"), b"(", inner)[:-1]
    shadow += Named("torch", "Tensor").line + call + steps(b"}", "numel", 3, b"stRs")[2:]
    yield "methods_of_a_tensor_are_numbers.pt", archive(shadow, {"data/0": bytes(40)})
    for name, rest in SHORT.items():
        yield f"{name}.pt", archive(steps(*rest))


SHORT: dict[str, tuple[bytes | Named | int | str, ...]] = {
    "nothing_to_append": (b"a",),
    "no_mark": (b"]", 1, b"e"),
    "nothing_to_call": (b"R",),
    "nothing_to_build": (b"}b",),
    "nothing_to_remember": (b"q\x00",),
    "nothing_remembered": (b"h\x07",),
    "a_storage_of_nothing": (b")Q",),
    "a_size_of_nothing": (Named("torch", "Size"), b")R"),
    "an_encoding_of_nothing": (Named("_codecs", "encode"), b")R"),
    "a_tensor_of_nothing": (Named("torch._utils", "_rebuild_tensor_v2"), b")R"),
    "a_type_of_nothing": (Named("torch._tensor", "_rebuild_from_type_v2"), b")R"),
    "a_partial_of_nothing": (Named("functools", "partial"), b")R"),
}
"""Pickles that need more than they have."""


def weight_called(name: bytes) -> bytes:
    """The pickle of a tensor under any name."""
    return tensor_steps(10, 0, (5, 2), (2, 1)).replace(
        b"X\x01\0\0\0w", b"X" + struct.pack("<I", len(name)) + name
    )


def modules() -> Iterator[tuple[str, bytes]]:
    """Whole modules whose attributes are not what their classes expect."""
    bare = nn.DataParallel(small())
    vars(bare).clear()
    yield "parallel_without_attributes.pt", saved(bare)
    wrapper = nn.DataParallel(small())
    wrapper._modules["module"] = None
    yield "parallel_of_nothing.pt", saved(wrapper)
    layer = nn.Linear(2, 2)
    for _ in range(60):
        layer = nn.Sequential(layer, layer)  # type: ignore[assignment]
    yield "shared_for_ever.pt", saved(layer)
    ring = nn.Sequential(nn.Linear(2, 2))
    ring._modules["again"] = ring
    yield "ring.pt", saved(ring)
    strange = small()
    vars(strange)["named_modules"] = vars(strange)["state_dict"] = 3
    yield "methods_are_numbers.pt", saved(strange)
    layer = nn.Linear(2, 2)
    vars(layer).clear()
    yield "without_attributes.pt", saved(nn.Sequential(layer))
    deep = small()
    for _ in range(120):
        deep = nn.Sequential(deep)
    yield "deep_layers.pt", saved(deep)
    attributes: dict[str, dict[str, Any]] = {
        "parts_are_a_list": {"_modules": [nn.ReLU()]},
        "a_part_is_a_number": {"_modules": {"0": 3}},
        "a_part_without_a_name": {"_modules": {0: nn.ReLU()}},
        "a_parameter_is_a_list": {"_parameters": {"weight": [1.0]}},
        "buffers_are_nothing": {"_buffers": None},
        "unsaved_buffers_are_a_number": {"_non_persistent_buffers_set": 3},
        "training_is_a_word": {"training": "yes"},
        "forward_is_a_layer": {"forward": nn.ReLU()},
        "a_hook_is_a_layer": {"_state_dict_hooks": OrderedDict({0: nn.ReLU()})},
        "hooks_are_a_number": {"_forward_hooks": 3},
        "an_attribute_without_a_name": {3: 3},  # type: ignore[dict-item]
    }
    for name, changed in attributes.items():
        model = small()
        vars(model).update(changed)
        yield f"{name}.pt", saved(model)
    for name, size in {"a_word": "4", "a_list_of_words": ["4"], "a_layer": nn.ReLU()}.items():
        model = small()
        vars(model[0])["in_channels"] = size
        yield f"size_is_{name}.pt", saved(model)
    for name, buffers in {"nothing": {}, "fractions": {"selected": torch.ones(3)}}.items():
        model = small()
        make_selecting_(model[0])
        model[0]._buffers = buffers
        yield f"selection_of_{name}.pt", saved(model)


def archives(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Zip files that are not what torch.save writes."""
    state = small().state_dict()
    whole = saved(state)
    data = zipfile.ZipFile(io.BytesIO(whole)).read("archive/data.pkl")
    yield "truncated.pt", whole[: len(whole) // 2]
    yield "cut_in_front.pt", b"PK\x03\x04" + whole[100:]
    at = whole.find(state["4.weight"].numpy().tobytes()) + 10
    yield "flipped_in_a_tensor.pt", flipped(whole, at, 0x40)
    yield "flipped_in_the_directory.pt", flipped(whole, whole.rfind(b"PK\x01\x02") + 46, 0x20)
    yield "flipped_in_the_pickle.pt", flipped(whole, whole.find(b"_rebuild_tensor_v2"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a/data.pkl", data)
        made.writestr("a/data/0", bytes(10**8))
    yield "zip_bomb.pt", packed.getvalue()
    bomb = bytearray(archive(data, {"data/0": bytes(64)}))
    entry = bomb.rfind(b"PK\x01\x02")
    bomb[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    yield "declares_two_gigabytes.pt", bytes(bomb)
    yield "path_traversal.pt", archive(data, {"../../canary": b"x"})
    yield "path_traversal_inside.pt", archive(data, {"a/../../../canary": b"x"})
    yield "absolute_path.pt", archive(data, {str(canary): b"x"})
    yield "backslashes.pt", archive(data, {r"a\..\..\canary": b"x"})
    yield "two_pickles.pt", archive(data, {"DATA.PKL": steps(b"}")})
    yield "two_folders.pt", archive(data, {"b/data.pkl": steps(b"}")})
    yield "two_archives.pt", whole + archive(steps(b"}"))
    yield "torchscript.pt", archive(data, {"constants.pkl": steps(b")"), "code/a.py": b"import os"})
    yield "no_checkpoint.zip", archive(data).replace(b"data.pkl", b"none.txt")
    yield "long_name.pt", saved({"module." * 10**5 + "w": torch.ones(1)})
    yield "empty_dict.pt", saved({})
    yield "no_weights.pt", saved({"epoch": 3, "\x1b[2J\nname": "x"})
    floats = {"data/0": bytes(40)}
    yield "valid_but_fits_nothing.pt.bin", tensor_steps(10, 0, (5, 2), (2, 1))
    yield "storage_beyond_its_bytes.pt", archive(tensor_steps(10**8, 0, (5, 2), (2, 1)), floats)
    yield "tensor_beyond_its_storage.pt", archive(tensor_steps(10, 0, (5, 4), (4, 1)), floats)
    yield "offset_beyond_its_storage.pt", archive(tensor_steps(10, 9, (5, 2), (2, 1)), floats)
    yield "strides_beyond_its_storage.pt", archive(tensor_steps(10, 0, (5, 2), (10**9, 1)), floats)
    yield "negative_offset.pt", archive(tensor_steps(10, -4, (5, 2), (2, 1)), floats)
    yield "expanded.pt", archive(tensor_steps(10, 0, (10**6, 10**6), (0, 0)), floats)
    yield "nan.pt", saved({**state, "0.bias": torch.full((4,), torch.nan)})
    yield "complex.pt", saved({**state, "0.bias": torch.zeros(4, dtype=torch.complex64)})
    yield "sparse.pt", saved({"w": torch.eye(3).to_sparse()})
    yield "meta.pt", saved({"w": torch.empty(10**6, 10**6, device="meta")})


def tensors(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Safetensors files: of anybody's, and with a header of ours."""
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps(one).encode()
    good = safetensors({"w": one}, bytes(4))
    yield "truncated.safetensors", good[:-2]
    yield "longer.safetensors", good + b"x"
    yield "length.safetensors", struct.pack("<Q", 2**63) + good[8:]
    yield "deep.safetensors", safetensors(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}")
    yield (
        "deep_header.safetensors",
        safetensors({"__metadata__": {HEADER_KEY: "[" * 10**5 + "]" * 10**5}, "w": one}, bytes(4)),
    )
    yield (
        "ten_megabytes.safetensors",
        safetensors({"__metadata__": {HEADER_KEY: "9" * 10**7}, "w": one}, bytes(4)),
    )
    yield "twice.safetensors", safetensors(b'{"w":%b,"w":%b}' % (text, text), bytes(4))
    two = {"a": {**one, "shape": [2], "data_offsets": [0, 8]}, "b": {**one, "data_offsets": [4, 8]}}
    yield "overlapping.safetensors", safetensors(two, bytes(8))
    yield "huge.safetensors", safetensors({"w": {**one, "shape": [2**40, 2**40]}}, bytes(4))
    yield "outside.safetensors", safetensors({"w": {**one, "data_offsets": [10**9, 10**9 + 4]}}, bytes(4))
    yield "negative.safetensors", safetensors({"w": {**one, "shape": [-1]}}, bytes(4))
    yield "complex.safetensors", safetensors({"w": {**one, "dtype": "C64", "data_offsets": [0, 8]}}, bytes(8))
    yield (
        "float8.safetensors",
        safetensors({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    )
    yield "nan.safetensors", safetensors({"w": one}, struct.pack("<f", float("nan")))
    ours = own(folder / "valid.safetensors").read_bytes()
    yield "flipped_in_our_tensors.safetensors", flipped(ours, len(ours) - 3)
    for name, word in {"width": b'"out_features\\": 3', "builder": b"zoo:mlp", "dtype": b'"F32"'}.items():
        assert word in ours
        yield f"flipped_in_our_{name}.safetensors", flipped(ours, ours.find(word) + len(word) - 2)
    changes: dict[str, dict[str, Any]] = {
        "builder": {"builder": {"name": "os:system", "kwargs": {"command": "touch canary"}}},
        "builder_of_a_file": {"builder": {"name": "hostile_builder:make", "kwargs": {}}},
        "weights": {"builder": {"name": "torchvision:resnet18", "kwargs": {"weights": "DEFAULT"}}},
        "checkpoint": {"builder": {"name": "timm:resnet18", "kwargs": {"checkpoint_path": "other.pt"}}},
        "a_million_layers": {"builder": {"name": "zoo:mlp", "kwargs": {"hidden": [1] * 10**6}}},
        "a_million_classes": {"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 10**6}}},
        "method": {"shapes": {"layers.0": {"forward": 3}}},
        "size": {"shapes": {"layers.0": {"in_features": -1}}},
        "terminal": {"shapes": {"\x1b[2J\n": {}}},
        "tie": {"ties": {"layers.0.bias": "layers.0.bias"}},
        "input": {"input_shape": [10**30]},
        "newer": {"format": 99},
        "checksum": {"crc32": 1},
        "truth_for_a_format": {"format": True},
        "deep_plan": {"plan": json.loads('{"a":' * 150 + "1" + "}" * 150)},
        "plan_in_a_list": {"plan": [1]},
        "layer_in_the_place_of_sizes": {"shapes": {"layers.0": 3}},
        "list_for_a_size": {"shapes": {"layers.0": {"in_features": [3]}}},
        "fraction_for_a_size": {"shapes": {"layers.0": {"in_features": 2.5}}},
        "selecting_number": {"selecting": 3},
        "selecting_numbers": {"selecting": [3]},
        "tie_to_a_number": {"ties": {"layers.0.bias": 3}},
        "input_word": {"input_shape": "abc"},
        "truth_for_an_input": {"input_shape": [True, 28, 28]},
        "unknown_switch": {"builder": {"name": "zoo:mlp", "kwargs": {"aux_logits": True}}},
        "width_for_widths": {"builder": {"name": "zoo:mlp", "kwargs": {"hidden": 3}}},
        "classes_in_a_list": {"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": [10]}}},
        "name_of_a_number": {"builder": {"name": 3, "kwargs": {}}},
    }
    for name, change in changes.items():
        rewrite(folder / "valid.safetensors", folder / "changed.safetensors", change)
        yield f"our_{name}.safetensors", (folder / "changed.safetensors").read_bytes()
    for name in ("valid", "changed"):
        (folder / f"{name}.safetensors").unlink()


def others() -> Iterator[tuple[str, bytes]]:
    """Files of another kind."""
    yield "empty.pt", b""
    yield "text.pt", b"import os\nos.system('touch canary')\n"
    yield "page.pt", b"\n<!DOCTYPE html><html><body>404</body></html>"
    yield "pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    yield "packed.pt", gzip.compress(b"x" * 1000)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        info = tarfile.TarInfo("\x80/../../canary")
        info.size = 4
        made.addfile(info, io.BytesIO(b"evil"))
    yield "tar.pt", stream.getvalue()
    yield "tar_like_a_pickle.pt", b"\x80" + stream.getvalue()[1:]
    yield "zeros.pt", bytes(10_000)
    yield "half_a_pickle.pt", b"\x80\x02}q\x00X\xff\xff\xff\x7f"
    yield "model.onnx", b"\x08\x0a\x12\x07pytorch" + bytes(100)


def program_with_a_pickle(canary: Path) -> bytes:
    """A .pt2 laid out as torch.export lays it out, with a pickle where its sample inputs are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("nested/archive_format", b"pt2")
        made.writestr("nested/models/model.json", b"{}")
        made.writestr("nested/data/sample_inputs/model.pt", saved(Runs(os.system, f"touch {canary}")))
    return stream.getvalue()


def no_files(folder: Path) -> Iterator[Path]:
    """What is there and is not a file."""
    (folder / "dangling.pt").symlink_to(folder / "gone.pt")
    (folder / "looping.pt").symlink_to(folder / "looping.pt")
    (folder / "folder.pt").mkdir()
    os.mkfifo(folder / "fifo.pt")
    (folder / "zero.pt").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    try:
        os.chdir(folder)  # the name of a socket may have 100 letters at most
        server.bind("socket.pt")
    finally:
        os.chdir(here)
        server.close()
    for name in ("dangling", "looping", "folder", "fifo", "zero", "socket", "missing"):
        yield folder / f"{name}.pt"


def corpus(folder: Path, canary: Path) -> list[Path]:
    """Write all of them; a file that runs something makes ``canary``, or imports ``hostile_builder``."""
    (folder / "hostile_builder.py").write_text(f"open({str(canary)!r}, 'w')\n")
    sources = (pickles(canary), modules(), archives(canary), tensors(folder), others())
    made = []
    for name, content in (pair for source in sources for pair in source):
        assert not (folder / name).exists(), name
        (folder / name).write_bytes(content)
        made.append(folder / name)
    return [*made, *no_files(folder)]
