"""The network that a run is about, of a module or the path of a checkpoint: a copy that may be changed."""

from __future__ import annotations

import os

from torch import nn

from mint_compress.checkpoints.loading import load_model
from mint_compress.nn.attention.separating import separate_attention_
from mint_compress.nn.copying import bare_copy
from mint_compress.nn.folding import fold_computed_weights_
from mint_compress.settings import Model


def open_model(model: nn.Module | str | os.PathLike[str], asked: Model) -> tuple[nn.Module, tuple[str, ...]]:
    """On the CPU, in eval mode, its weights plain ones, its attention made of layers.

    Returns
    -------
    module, notes
        A module is copied, in float32; notes say what was assumed or changed.

    Raises
    ------
    MintError
        A file that cannot be read, or a module that cannot be copied.
    """
    if isinstance(model, nn.Module):
        module, notes = bare_copy(model)
    else:
        loaded = load_model(model, arch=asked.arch, trust=asked.trust, weights=asked.weights)
        module, notes = loaded.module, loaded.notes
    return module, notes + fold_computed_weights_(module) + separate_attention_(module)
