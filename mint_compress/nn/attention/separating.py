"""Which attention of a network gets layers of its own, and gets them again where it is rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mint_compress.errors import MintError, shown
from mint_compress.nn.attention import multihead, windows


class Kind(NamedTuple):
    """Attention of one kind, which is looked at and then replaced."""

    note: str
    fits: Callable[[nn.Module | None], bool]
    made: Callable[[Any], nn.Module]
    is_made: Callable[[nn.Module], bool]


def _has_bias_beside(module: nn.Module | None) -> bool:
    """Whether it is attention of timm that adds biases to ``qkv`` which are parameters of its own.

    Where it has none of them, it calls ``qkv`` as a layer.
    """
    own: Any = module
    return _is_of_timm(module) and own.qkv is not None and own.qkv.bias is None and own.q_bias is not None


def _with_bias(own: Any) -> nn.Module:
    """The same module, ``qkv`` with the bias."""
    bias = torch.cat([own.q_bias, own.k_bias, own.v_bias]).detach()
    own.qkv.bias = nn.Parameter(bias, requires_grad=own.q_bias.requires_grad)
    own.q_bias = own.k_bias = own.v_bias = None
    module: nn.Module = own
    return module


def _has_bias_within(module: nn.Module) -> bool:
    own: Any = module
    return _is_of_timm(module) and own.qkv is not None and own.qkv.bias is not None and own.q_bias is None


def _is_of_timm(module: nn.Module | None) -> bool:
    return f"{type(module).__module__}.{type(module).__name__}" in (
        "timm.models.beit.Attention",
        "timm.models.eva.EvaAttention",
        "timm.models.swin_transformer_v2.WindowAttention",
    )


KINDS = (
    Kind(
        "nn.MultiheadAttention has layers of its own for q, k and v",
        multihead.can_be_separate,
        multihead.SeparateAttention,
        lambda module: isinstance(module, multihead.SeparateAttention),
    ),
    Kind(
        "the shifted windows of torchvision have layers of their own for q, k and v",
        windows.can_be_separate,
        windows.SeparateWindowAttention,
        lambda module: isinstance(module, windows.SeparateWindowAttention),
    ),
    Kind(
        "q_bias and v_bias of timm's attention are the bias of the layer qkv",
        _has_bias_beside,
        _with_bias,
        _has_bias_within,
    ),
)


def separate_attention_(model: nn.Module) -> tuple[str, ...]:
    """Give attention layers of its own that are called as such, in place, and say so in a note.

    Its heads can then go one by one. It is done to nn.MultiheadAttention, to the shifted windows of
    torchvision's Swin Transformers, and to attention of timm whose biases are parameters beside the layer.
    An nn.MultiheadAttention with biases for keys and values, what has hooks, and subclasses stay, and so does
    the network itself where it is one.

    Parameters
    ----------
    model
        Its other modules and parameters stay the same objects.
    """
    notes = []
    for kind in KINDS:
        names = [name for name, module in model.named_modules() if name and kind.fits(module)]
        _separate_(model, names, kind)
        if names:
            notes.append(f"{kind.note}: its heads can go ({len(names)} of them)")
    return tuple(notes)


def separate_layers(model: nn.Module) -> list[str]:
    """Qualified names of the modules that :func:`separate_attention_` has made."""
    return [name for name, m in model.named_modules() if any(kind.is_made(m) for kind in KINDS)]


def restore_separate_(model: nn.Module, names: Sequence[str]) -> None:
    """Make the attention of a network that is rebuilt from a file separate again, in place.

    Raises
    ------
    MintError
        A name is not that of attention that can be.
    """
    modules = dict(model.named_modules())
    fitting: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
    for name in names:
        kind = next((kind for kind in KINDS if name and kind.fits(modules.get(name))), None)
        if kind is None:
            raise MintError(f"The file has attention {shown(name)!r}, which the architecture has not.")
        fitting[kind].append(name)
    for kind, own in fitting.items():
        _separate_(model, own, kind)


def _separate_(model: nn.Module, names: Sequence[str], kind: Kind) -> None:
    """Each becomes a module of its own, under all names that it has."""
    found = {id(module): module for module in map(model.get_submodule, names)}
    made = {key: kind.made(module) for key, module in found.items()}
    for parent, key, child in list(_children(model)):
        if id(child) in made:
            setattr(parent, key, made[id(child)])


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is not None:
                yield parent, key, child
