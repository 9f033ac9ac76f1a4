"""Checkpoint files: reading what others wrote as plain data, writing safetensors that load without pickle."""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.checkpoints.builders import Builder, builder_of, input_shape_of
from mint_compress.checkpoints.safe_load import (
    DAMAGED,
    SAVE_WEIGHTS,
    damaged,
    file_kind,
    regular_file,
    unpickle,
)
from mint_compress.errors import MintError, shown
from mint_compress.nn.input_selection import selecting_layers
from mint_compress.surgery.layer_sizes import shape_spec

log = logging.getLogger(__name__)

FORMAT = 2
"""Of the header: 2 since its checksum covers the header too, and not the tensors alone."""
HEADER_KEY = "mint_compress"
NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
MOST_MODULES = 100_000
MOST_LETTERS = 1000
WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: ``tensors`` (a state_dict, floats as float32) or a whole ``module``, never both.

    ``arch`` is the architecture's name where the file records one, ``header`` what :func:`save` noted.
    """

    tensors: dict[str, Tensor] | None
    module: nn.Module | None
    arch: str | None = None
    header: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], *, trust: Iterable[str] = ()) -> Checkpoint:
    """Read the weights in a file; nothing in it is executed.

    Parameters
    ----------
    path
        A regular file (or a symbolic link to one): ``torch.save`` of a state_dict, of a dict around
        one, or of a whole module; or safetensors.
    trust
        Names of modules that may be imported, so that pickled layers of their classes can be built.

    Returns
    -------
    Checkpoint
        On the CPU, floats as float32; wrappers and prefixes such as ``module.`` are taken off.

    Raises
    ------
    MintError
        The file is missing, damaged, of another kind, asks for code, or holds NaN or infinity.
    """
    file = regular_file(Path(path))
    weights: nn.Module | dict[str, Tensor]
    header, arch = None, None
    if file_kind(file) == "safetensors":
        weights, header = _read_safetensors(file)
    else:
        found = unpickle(file, trust=trust)
        try:
            weights, arch = _unwrap(found, file)
        except MintError:
            raise
        except DAMAGED as error:
            # the attributes of an unpickled module are whatever the file says
            log.debug("%s: %s", path, error)
            raise damaged(file) from None
    if isinstance(weights, nn.Module):
        return Checkpoint(None, _checked_module(weights, file), arch)
    _check_storage(weights, file)
    converted = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values() if _is_odd_float(t)})
    notes = (f"{', '.join(converted)} weights converted to float32",) if converted else ()
    tensors = {k: t.detach().float() if _is_odd_float(t) else t.detach() for k, t in weights.items()}
    _check_finite(tensors, file)
    return Checkpoint(tensors if header else _without_prefixes(tensors), None, arch, header, notes)


def _unwrap(found: Any, path: Path) -> tuple[nn.Module | dict[str, Tensor], str | None]:
    """The module or state_dict in what was unpickled, and the architecture's name beside it."""
    arch = None
    # as deep as {"model": {"state_dict": ...}} and once more
    for _ in range(3):
        if isinstance(found, nn.Module):
            inner = found._modules.get("module") if isinstance(found, nn.DataParallel) else found
            if not isinstance(inner, nn.Module):
                raise damaged(path, "a DataParallel without a module in it")
            return inner, arch
        if not isinstance(found, Mapping):
            raise MintError(f"{path} holds a {type(found).__name__}, not weights. Save them: {SAVE_WEIGHTS}")
        if isinstance(found.get("arch"), str):
            arch = found["arch"]
        wrapped = [found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping | nn.Module)]
        if not wrapped:
            break
        found = wrapped[0]
    states = [value for value in found.values() if _is_state_dict(value)]
    # {"net": state_dict, "epoch": 3}: under whatever name, when there is only one
    if len(states) == 1 and not any(isinstance(v, Tensor) for v in found.values()):
        found = states[0]
    tensors = {k: v for k, v in found.items() if not str(k).endswith("_extra_state")}
    strange = [k for k, v in tensors.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if not tensors or strange:
        keys = ", ".join(shown(k) for k in list(found)[:5]) or "nothing"
        raise MintError(
            f"{path} holds no state_dict, alone or under {', '.join(WRAPPERS)}; it holds {keys}. "
            f"Save the weights: {SAVE_WEIGHTS}"
        )
    return tensors, arch


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the bare module has them: without DataParallel, averaging and torch.compile around it."""
    # AveragedModel counts its updates beside the weights
    named = {k: t for k, t in tensors.items() if k != "n_averaged"}
    while named and all(k.startswith("module.") for k in named):
        named = {k.removeprefix("module."): t for k, t in named.items()}
    bare = {k.replace("_orig_mod.", ""): t for k, t in named.items()}
    if bare.keys() != named.keys() and len(bare) == len(named):
        return _without_prefixes(bare)
    return named


def _is_odd_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _checked_module(module: nn.Module, path: Path) -> nn.Module:
    try:
        # layers that share layers are visited as often as they are shared
        if len(list(islice(module.named_modules(remove_duplicate=False), MOST_MODULES))) == MOST_MODULES:
            raise damaged(path, f"a network of {MOST_MODULES:,} layers or more")
        everything = {
            f"{name}.{key}".strip("."): value
            for name, part in module.named_modules()
            for key, value in (*part._parameters.items(), *part._buffers.items(), *vars(part).items())
            if isinstance(value, Tensor)
        }
        _check_storage(everything, path)
        module = module.float()
        _check_finite(module.state_dict(), path)
    except MintError:
        raise
    except DAMAGED as error:
        # the attributes of an unpickled module are whatever the file says
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    return module


def _check_storage(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are more than their bytes in the file, before anything is computed with them."""
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
        if len(name) > MOST_LETTERS:
            raise damaged(path, f"naming a tensor with {len(name):,} letters")
        name = shown(name)
        if not plain or tensor.is_meta or tensor.is_quantized:
            raise MintError(
                f"{path}: {name!r} is a sparse, quantised, empty or wrapped tensor, which cannot be pruned. "
                "Give the plain float weights."
            )
        if tensor.dtype not in NUMBERS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise MintError(f"{path}: {name!r} holds {kind} numbers. Give the weights as float32 or float16.")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise MintError(
                f"{path}: {name!r} declares {tuple(tensor.shape)} elements and has {storage.nbytes()} bytes. "
                "Save contiguous tensors."
            )
    if sum(storages.values()) > path.stat().st_size:
        raise damaged(path, f"declaring {sum(storages.values())} bytes of weights, more than its size")


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise MintError(
                f"{path}: {count} of {tensor.numel()} values of {shown(name)!r} are NaN or infinite. "
                "Give a checkpoint from before the training diverged."
            )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        _check_names(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = None if text is None else json.loads(text, object_pairs_hook=_once)
    except MintError:
        raise
    except (SafetensorError, ValueError, RecursionError, OSError, RuntimeError, AttributeError) as error:
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
    if text is None:
        if not tensors:
            raise MintError(f"{path} holds no tensors. Save the weights again.")
        return tensors, None
    made = header.get("format") if isinstance(header, dict) else None
    if not isinstance(header, dict) or not isinstance(made, int) or made < 1:
        raise damaged(path, f"without a valid {HEADER_KEY} header")
    if made > FORMAT:
        raise MintError(
            f"{path} has format {made}, and this version reads up to {FORMAT}. "
            "Update: pip install -U mint-compress"
        )
    # before anything is computed with them
    _check_storage(tensors, path)
    if header.get("crc32") != (_checksum(tensors) if made == 1 else _checksum(tensors, header)):
        raise damaged(path, "damaged (the checksum of its tensors and header is wrong)")
    return tensors, header


def _check_names(path: Path) -> None:
    """Refuse a safetensors header that names a tensor twice: readers differ in which one they take."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        text = stream.read(length)
    json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> int:
    """CRC-32 over all tensors in the order of their names: safetensors has no checksum of its own.

    With a ``header``, over the names, types and shapes and over that header as well; format 1 did
    without.
    """
    crc = 0
    for name, tensor in sorted(tensors.items()):
        if header is not None:
            crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    if header is None:
        return crc
    rest = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode(), crc)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    builder: Builder | None = None,
    plan: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model`` as safetensors with what it takes to rebuild it: no pickle, no code.

    Parameters
    ----------
    model
        Pruned or not; parameters shared by two layers are written once.
    path
        Replaced as a whole, or not at all.
    builder
        What made the architecture before it was pruned; by default what :func:`builder_of` knows.
        Without one, ``load`` has to be given a callable.
    plan
        The pruning plan as a JSON object, kept in the header.

    Raises
    ------
    MintError
        The folder does not exist or cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = Path(path)
    if not file.parent.is_dir():
        raise MintError(f"The folder {file.parent} does not exist. Create it first.")
    tensors, ties = _untied(model)
    builder = builder or builder_of(model)
    header = {
        "format": FORMAT,
        "builder": None if builder is None else {"name": builder.name, "kwargs": builder.kwargs},
        "input_shape": input_shape_of(model),
        "shapes": shape_spec(model),
        "selecting": selecting_layers(model),
        "ties": ties,
        "plan": plan,
    }
    # as it will be read: tuples become lists, and numbers that are keys become words
    header = json.loads(json.dumps(header))
    header["crc32"] = _checksum(tensors, header)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()  # with the user's own permissions: safetensors would make it private
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header), "format": "pt"})
        temporary.chmod(mode)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        raise MintError(f"Cannot write {file}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state_dict on the CPU with every shared tensor once, and the other names of those."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    storages: set[int] = set()
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise MintError(
                f"{key!r} of the model is a {type(value).__name__}; safetensors holds tensors only."
            )
        if id(value) in first:
            ties[key] = first[id(value)]
            continue
        first[id(value)] = key
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # safetensors refuses views of a larger buffer and tensors that overlap in memory
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        tensors[key] = tensor if whole and storage.data_ptr() not in storages else tensor.clone()
        storages.add(storage.data_ptr())
    return tensors, ties
