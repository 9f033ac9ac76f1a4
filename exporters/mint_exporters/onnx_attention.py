"""Attention in the form that PyTorch's ONNX exporter takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FourDimensional(TorchFunctionMode):
    """Attention as (batch, heads, tokens, channels).

    ``scaled_dot_product_attention`` takes any number of dimensions in front of the tokens, none for
    heads as well as (batch, windows, heads); the exporter takes two.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            func = _attention
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    if query.ndim == 4:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **options)
    in_front = query.shape[:-2]
    query, key, value = (_four(t) for t in (query, key, value))
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _four(attn_mask.expand(*in_front, *attn_mask.shape[-2:]))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask, *rest, **options)
    return out.reshape(*in_front, *out.shape[-2:])


def _four(x: Tensor) -> Tensor:
    if x.ndim < 4:
        return x[(None,) * (3 - x.ndim)].unsqueeze(1)
    return x.flatten(0, -4)
