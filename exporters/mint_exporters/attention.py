"""Attention in the form that PyTorch's ONNX exporter takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FourDimensional(TorchFunctionMode):
    """Attention over windows as one batch of them.

    ``scaled_dot_product_attention`` takes any number of dimensions in front of the heads, as in
    (batch, windows, heads, tokens, channels); the exporter refuses more than one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    in_front = query.shape[:-3]
    if len(in_front) > 1:
        query, key, value = (t.flatten(0, -4) for t in (query, key, value))
        if attn_mask is not None and attn_mask.ndim > 3:
            attn_mask = attn_mask.expand(*in_front, *attn_mask.shape[-3:]).flatten(0, -4)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **options)
    return out.unflatten(0, in_front) if len(in_front) > 1 else out
