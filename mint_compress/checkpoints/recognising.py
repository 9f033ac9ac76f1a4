"""Which known builder makes just the module that a file holds as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.building import build
from mint_compress.checkpoints.identifying import fitted
from mint_compress.checkpoints.registry import is_known
from mint_compress.checkpoints.whole_modules import working

# torchvision sets an attribute of these that no state_dict tells: whether ImageNet's mean and standard
# deviation are turned into those of the weights that Google trained
TRANSFORMS_INPUT = ("torchvision:googlenet", "torchvision:inception_v3")


def recognised(module: nn.Module, path: Path) -> Builder | None:
    """The known builder that makes just this module, layer for layer, or None.

    Parameters
    ----------
    module
        Checked, see :func:`mint_compress.checkpoints.whole_modules.checked_module`, and in eval mode.
    path
        The file that it is from.

    Raises
    ------
    MintError
        The code of its layers fails on their attributes.
    """
    with working(module, path):
        state = dict(module.state_dict())
    shapes = {k: tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor)}
    for name in fingerprints.candidates(shapes):
        if not is_known(name):
            continue
        builder, difference = fitted(name, shapes)
        if difference:
            continue
        if name in TRANSFORMS_INPUT and vars(module).get("transform_input") is True:
            builder.kwargs["transform_input"] = True
        if _looks(build(builder).eval(), path) == _looks(module, path):
            return builder
    return None


def _looks(module: nn.Module, path: Path) -> tuple[str, list[tuple[type, dict[str, str]]]]:
    """How a module prints itself, and the type and plain settings of each layer: not all are printed."""
    layers = [(type(layer), _settings(layer)) for layer in module.modules()]
    # a tuple may hold a layer, and the printed form of a layer is made by its own code
    with working(module, path):
        return repr(module), [(kind, {k: repr(v) for k, v in plain.items()}) for kind, plain in layers]


def _settings(layer: nn.Module) -> dict[str, Any]:
    noted = ("training", "mint_builder", "mint_input_shape")
    plain = {k: v for k, v in vars(layer).items() if isinstance(v, bool | int | float | str | tuple)}
    return {k: v for k, v in plain.items() if k not in noted}
