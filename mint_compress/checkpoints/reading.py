"""The weights in a checkpoint file, as plain data, whatever wrote them and however they are wrapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mint_compress.checkpoints.file_kinds import file_kind, regular_file
from mint_compress.checkpoints.headers import Header
from mint_compress.checkpoints.safe_load import unpickle
from mint_compress.checkpoints.safetensors_files import read_safetensors
from mint_compress.checkpoints.tensors import as_float32, check_finite, check_storage
from mint_compress.checkpoints.whole_modules import checked_module
from mint_compress.checkpoints.wrappings import Unwrapped, no_such_set, unwrapped


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: ``tensors`` (a state_dict, floats as float32) or a whole ``module``, never both.

    ``arch`` is the architecture's name where the file records one, ``header`` what
    :func:`mint_compress.checkpoints.saving.save` noted. ``unmet`` is the name of a set of weights that was
    asked for and is none of the file's ``sets``: it may be one within the keys of ``tensors``.
    """

    tensors: dict[str, Tensor] | None
    module: nn.Module | None
    arch: str | None = None
    header: Header | None = None
    notes: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    unmet: str | None = None


def read_checkpoint(
    path: str | os.PathLike[str], *, trust: Iterable[str] = (), weights: str | None = None
) -> Checkpoint:
    """Read the weights in a file; nothing in it is executed.

    Parameters
    ----------
    path
        A regular file (or a symbolic link to one): ``torch.save`` of a state_dict, of a dict around
        one, or of a whole module; or safetensors.
    trust
        Names of modules that may be imported, so that pickled layers of their classes can be built.
    weights
        Which set of weights to take where the file holds several: its name, or a part of it.

    Returns
    -------
    Checkpoint
        On the CPU, floats as float32; wrappers and prefixes such as ``module.`` are taken off.

    Raises
    ------
    MintError
        The file is missing, damaged, of another kind, asks for code, holds NaN or infinity, or has no
        such set of weights.
    """
    file = regular_file(Path(path))
    if file_kind(file) == "safetensors":
        tensors, header = read_safetensors(file)
        found = Unwrapped(tensors, unmet=weights)
    else:
        found, header = unwrapped(unpickle(file, trust=trust), file, weights), None
    if found.unmet is not None and (header is not None or isinstance(found.weights, nn.Module)):
        raise no_such_set(file, found.unmet, found.sets)
    if isinstance(found.weights, nn.Module):
        return Checkpoint(None, checked_module(found.weights, file), found.arch, notes=found.notes)
    check_storage(found.weights, file)
    tensors, notes = as_float32(found.weights)
    check_finite(tensors, file)
    if header is None:
        tensors = _without_prefixes(tensors)
    return Checkpoint(tensors, None, found.arch, header, found.notes + notes, found.sets, found.unmet)


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
