"""The tensors of a file: no more than their bytes in it, plain, finite, and float32 in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mint_compress.checkpoints.damage import damaged
from mint_compress.errors import MintError, shown

NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
MOST_LETTERS = 1000

# of a PyTorch that has tensors with named dimensions, which most operations refuse
HAS_NAMES = getattr(Tensor, "has_names", lambda _: False)


def check_storage(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are more than their bytes in the file, before anything is computed with them."""
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        check_name(name, path)
        _check_kind(shown(name), tensor, path)
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise MintError(
                f"{path}: {shown(name)!r} declares {tuple(tensor.shape)} elements and has "
                f"{storage.nbytes()} bytes. Save contiguous tensors."
            )
    if sum(storages.values()) > path.stat().st_size:
        raise damaged(path, f"declaring {sum(storages.values())} bytes of weights, more than its size")


def check_name(name: str, path: Path) -> None:
    """Refuse what is no name of a tensor or layer: too long, or no text that could be written down."""
    if len(name) > MOST_LETTERS:
        raise damaged(path, f"naming a tensor with {len(name):,} letters")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise damaged(path, f"naming a tensor {shown(name)!r}, which is no text")


def _check_kind(name: str, tensor: Tensor, path: Path) -> None:
    # a file may give a tensor attributes, under the names of its methods too
    tampered = any(hasattr(Tensor, str(key)) for key in vars(tensor)) or tensor._backward_hooks
    if tampered or HAS_NAMES(tensor):
        raise damaged(path, f"giving the tensor {name!r} attributes that torch.save does not write")
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.is_quantized:
        raise MintError(
            f"{path}: {name!r} is a sparse, quantised, empty or wrapped tensor, which cannot be pruned. "
            "Give the plain float weights."
        )
    if tensor.dtype not in NUMBERS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise MintError(f"{path}: {name!r} holds {kind} numbers. Give the weights as float32 or float16.")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with NaN or infinity in them."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise MintError(
                f"{path}: {count} of {tensor.numel()} values of {shown(name)!r} are NaN or infinite. "
                "Give a checkpoint from before the training diverged."
            )


def as_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without their history, all fractions as float32, and a line if that changed any."""
    odd = {k: t for k, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32}
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in odd.values()}))
    converted = {k: t.detach().float() if k in odd else t.detach() for k, t in tensors.items()}
    return converted, (f"{kinds} weights converted to float32",) if odd else ()
