"""The receipt from the tensors that were saved: all of the network's, in its shapes, and no others."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from mint_compress.errors import CheckFailed

Shape = tuple[int, ...]


def check_tensors(pruned: nn.Module, path: Path) -> int:
    """Compare the tensors saved in a ``.safetensors`` file with the network; return their parameters."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckFailed(f"'{path}' cannot be read back: {error}") from error
    expected: dict[str, Shape] = {}
    total = 0
    for parameter, names in named_parameters(pruned):
        if not any(name in stored for name in names):
            raise CheckFailed(f"'{path}' has no tensor '{names[0]}'.")
        expected |= {name: tuple(parameter.shape) for name in names}
        total += math.prod(next(stored[name] for name in names if name in stored))
    expected |= {name: tuple(buffer.shape) for name, buffer in pruned.named_buffers(remove_duplicate=False)}
    for name, shape in stored.items():
        if name not in expected:
            raise CheckFailed(f"'{path}' has a tensor '{name}' that the network does not have.")
        if shape != expected[name]:
            raise CheckFailed(
                f"Tensor '{name}' of '{path}' is {shape}; in the network it is {expected[name]}."
            )
    return total


def named_parameters(model: nn.Module) -> list[tuple[nn.Parameter, tuple[str, ...]]]:
    """Every parameter once, with all the names it goes by."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(parameter, tuple(names[id(parameter)])) for parameter in model.parameters()]
