"""Writing a network as safetensors, with what rebuilds it: no pickle, no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints.builders import Builder, builder_of, input_shape_of
from mint_compress.checkpoints.headers import FORMAT, HEADER_KEY, checksum
from mint_compress.errors import MintError
from mint_compress.nn.attention.separating import separate_layers
from mint_compress.nn.input_selection import selecting_layers
from mint_compress.surgery.layer_sizes import shape_spec


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
        "separate": separate_layers(model),
        "ties": ties,
        "plan": plan,
    }
    # as it will be read: tuples become lists, and numbers that are keys become words
    header = json.loads(json.dumps(header))
    header["crc32"] = checksum(tensors, header)
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
