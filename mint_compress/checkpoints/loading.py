"""From a path to a network that is ready to be pruned: which builder, which weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder, builder_of, input_shape_of, remember_builder
from mint_compress.checkpoints.identifying import filled
from mint_compress.checkpoints.reading import read_checkpoint
from mint_compress.checkpoints.rebuilding import rebuilt
from mint_compress.checkpoints.recognising import TRANSFORMS_INPUT, recognised
from mint_compress.checkpoints.registry import resolve
from mint_compress.checkpoints.whole_modules import working
from mint_compress.errors import MintError

__all__ = ["Builder", "LoadedModel", "builder_of", "input_shape_of", "load", "load_model", "remember_builder"]


@dataclass(frozen=True)
class LoadedModel:
    """A network from a file: on the CPU, in eval mode, in float32.

    ``input_shape`` is without the batch; ``plan`` is the one the file was pruned by, if it was;
    ``notes`` say in a line each how the file was understood.
    """

    module: nn.Module
    builder: Builder | None
    input_shape: tuple[int, ...] | None
    plan: dict[str, Any] | None
    notes: tuple[str, ...]


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    trust: Iterable[str] = (),
    weights: str | None = None,
) -> LoadedModel:
    """Read a checkpoint and put its weights into the architecture they belong to.

    Parameters
    ----------
    path
        See :func:`mint_compress.checkpoints.reading.read_checkpoint`.
    arch
        A zoo or torchvision builder, ``timm:NAME``, or ``package.module:callable``. Without it the
        architecture that the file records decides if its keys and shapes agree, else keys and shapes
        alone, in the order zoo, torchvision, timm; the file's name breaks ties.
    trust
        Modules that may be imported because the file names them.
    weights
        Which set of weights to take where the file holds several: its name, such as ``state_dict_ema``
        or the prefix ``model_ema`` of its keys, or a part of it, such as ``ema``.

    Returns
    -------
    LoadedModel
        Its module carries its builder and input shape, see :func:`builder_of`.

    Raises
    ------
    MintError
        The file cannot be read, or fits no architecture, or several, or has no such set of weights.
    """
    file, trusted = Path(path), tuple(trust)
    checkpoint = read_checkpoint(file, trust=trusted, weights=weights)
    plan = None
    notes = checkpoint.notes
    if checkpoint.header is not None:
        maker = None if arch is None else Builder(resolve(arch))
        module = rebuilt(checkpoint, checkpoint.header, file, maker, trusted)
        builder, shape, plan = builder_of(module), input_shape_of(module), checkpoint.header.plan
        notes += (f"architecture from the file: {builder.name if builder else 'unnamed'}",)
    elif checkpoint.module is not None:
        module = checkpoint.module
        with working(module, file):
            module.eval()
        builder = recognised(module, file)
        shape = fingerprints.input_shape(builder.name) if builder else None
        notes += (f"the file holds the whole model, a {type(module).__name__}",)
        if arch is not None:
            notes += (f"--arch {arch} was not needed",)
    else:
        found = filled(checkpoint, arch, file)
        module, builder = found.module, found.builder
        shape = fingerprints.input_shape(builder.name)
        notes += found.notes
        if builder.name in TRANSFORMS_INPUT:
            notes += (
                "built with transform_input=False, but torchvision's own weights need True: "
                "for those give --arch package.module:callable, a function of yours that sets it",
            )
    remember_builder(module, builder, shape)
    return LoadedModel(module.eval(), builder, shape, plan, notes)


def load(
    path: str | os.PathLike[str],
    *,
    builder: Callable[[], nn.Module] | None = None,
    trust: Iterable[str] = (),
) -> nn.Module:
    """Rebuild a module that :func:`mint_compress.checkpoints.saving.save` wrote, pruned or not.

    Parameters
    ----------
    path
        A .safetensors file with this program's header.
    builder
        Makes the architecture as it was before it was pruned, for modules that no known builder made.
    trust
        Modules that may be imported because the file names a builder in them.

    Returns
    -------
    nn.Module
        On the CPU, in eval mode; its parameters are new and require gradients: call ``train()`` and
        make the optimizer.

    Raises
    ------
    MintError
        The file cannot be read or was not written by ``save``, or its builder is unknown.
    """
    file = Path(path)
    checkpoint = read_checkpoint(file, trust=trust)
    if checkpoint.header is None:
        raise MintError(f"{file} was not written by mint_compress.save. Read it with load_model(path).")
    return rebuilt(checkpoint, checkpoint.header, file, builder, tuple(trust)).eval()
