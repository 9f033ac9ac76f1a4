"""A network from one of our own files: its builder called, then the sizes and weights of the file put in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mint_compress.checkpoints.builders import Builder, remember_builder
from mint_compress.checkpoints.building import build, called
from mint_compress.checkpoints.headers import Header
from mint_compress.checkpoints.permissions import permitted
from mint_compress.checkpoints.reading import Checkpoint
from mint_compress.errors import MintError, shown
from mint_compress.nn.attention.separating import restore_separate_
from mint_compress.nn.input_selection import restore_selecting_
from mint_compress.surgery.layer_sizes import set_shapes_, set_tensors_


def rebuilt(
    checkpoint: Checkpoint,
    header: Header,
    path: Path,
    maker: Builder | Callable[[], nn.Module] | None,
    trust: tuple[str, ...],
) -> nn.Module:
    """The network in ``checkpoint``, with its builder and input shape noted on it.

    Parameters
    ----------
    checkpoint
        With tensors.
    header
        Of that checkpoint.
    path
        The file, for messages.
    maker
        Makes the architecture as it was before it was pruned; by default what the header names, where
        a file may name it.
    trust
        Modules in which the header's builder may lie.

    Raises
    ------
    MintError
        The builder may not be called, fails, or makes another architecture.
    """
    tensors = checkpoint.tensors or {}
    if maker is None:
        maker = permitted(header.builder, path, trust)
        classes = maker.kwargs.get("num_classes")
        # a head is not pruned; memory for one of a million classes is not to be had for nothing
        if classes and not any(classes in t.shape for t in tensors.values()):
            raise MintError(
                f"{path} is said to have {shown(classes)} classes and has no tensor of that size."
            )
    module = _unpruned(maker, path)
    try:
        restore_separate_(module, header.separate)
        restore_selecting_(module, header.selecting, tensors)
        set_shapes_(module, header.shapes)
        set_tensors_(module, tensors, header.ties)
    except MintError as error:
        raise MintError(f"{path} does not fit {getattr(maker, 'name', 'the builder')}. {error}") from None
    remember_builder(module, maker if isinstance(maker, Builder) else header.builder, header.input_shape)
    return module


def _unpruned(maker: Builder | Callable[[], nn.Module], path: Path) -> nn.Module:
    if not isinstance(maker, Builder):
        return called(maker, Builder("The builder"))
    try:
        return build(maker)
    except MintError as error:
        raise MintError(f"{path}: {error}") from error
