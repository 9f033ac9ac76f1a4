"""What made a network and what it takes, noted on the network itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn


@dataclass(frozen=True)
class Builder:
    """What makes an architecture: a zoo, torchvision or timm builder, or ``package.module:callable``.

    Names are such as ``zoo:vgg16_cifar``, ``torchvision:resnet18``, ``timm:regnety_002``; ``kwargs``
    such as ``{"num_classes": 10}``.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def remember_builder(module: nn.Module, builder: Builder | None, input_shape: Sequence[int] | None) -> None:
    """Note on ``module`` what made it and what it takes (without the batch); deepcopy keeps the note."""
    # plain data, so that torch.save(module) stays readable without this package
    note = None if builder is None else {"name": builder.name, "kwargs": dict(builder.kwargs)}
    vars(module)["mint_builder"] = note
    vars(module)["mint_input_shape"] = None if input_shape is None else tuple(input_shape)


def builder_of(module: nn.Module) -> Builder | None:
    """The builder noted by :func:`remember_builder`, or None."""
    note = vars(module).get("mint_builder")
    return None if note is None else Builder(note["name"], note["kwargs"])


def input_shape_of(module: nn.Module) -> tuple[int, ...] | None:
    """The input shape, without the batch, noted by :func:`remember_builder`, or None."""
    return cast("tuple[int, ...] | None", vars(module).get("mint_input_shape"))
