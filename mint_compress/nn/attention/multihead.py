"""nn.MultiheadAttention with layers of its own for queries, keys and values, so that heads can go.

In nn.MultiheadAttention the heads together are as wide as what it reads, by construction, and queries, keys
and values are rows of one parameter. Here each has a layer, and the heads may be fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SeparateAttention(nn.Module):
    """What an nn.MultiheadAttention computes, for its arguments; see there for what they mean.

    Attributes
    ----------
    num_heads
        How many heads are left.
    scale
        By which products of queries and keys are multiplied.
    q_proj, k_proj, v_proj, out_proj
        Linear layers; a head's channels lie side by side.
    """

    # what nn.TransformerEncoderLayer asks before it takes a way of its own with the packed weights
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.dropout = packed.num_heads, packed.dropout
        self.batch_first, self.scale = packed.batch_first, packed.head_dim**-0.5
        own = _packed_weights(packed)
        biases = (None,) * 3 if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        made = [linear(weight, bias) for weight, bias in zip(own, biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = made
        self.out_proj = linear(packed.out_proj.weight, packed.out_proj.bias)
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention's outputs, and its weights where they are needed."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        given: tuple[Tensor, ...] = (query, key, value)
        batched, first = query.ndim == 3, self.batch_first
        if not batched:
            given = tuple(x[None] for x in given)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not first:
            given = tuple(x.transpose(0, 1) for x in given)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in zip((self.q_proj, self.k_proj, self.v_proj), given, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q, batch=q.shape[0])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.scale
            weights = (scores if mask is None else scores + mask).softmax(-1)
            y = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y[0], None if weights is None else weights[0]
        return y if first else y.transpose(0, 1), weights

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor, *, batch: int
    ) -> Tensor | None:
        """What is added to the products of queries and keys, (batch or 1, heads or 1, queries or 1, keys)."""
        masks = []
        if attn_mask is not None:
            own = attn_mask[None, None] if attn_mask.ndim == 2 else attn_mask.unflatten(0, (batch, -1))
            masks.append(_added(own, like))
        if key_padding_mask is not None:
            masks.append(_added(key_padding_mask[:, None, None], like))
        return masks[0] + masks[1] if len(masks) == 2 else masks[0] if masks else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _packed_weights(packed: nn.MultiheadAttention) -> Sequence[Tensor]:
    if packed.in_proj_weight is not None:
        return packed.in_proj_weight.chunk(3)
    own: Any = packed
    return own.q_proj_weight, own.k_proj_weight, own.v_proj_weight


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with copies of these, which are trained where they were."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made


def can_be_separate(module: nn.Module | None) -> bool:
    """Whether :class:`SeparateAttention` computes what this module does."""
    if type(module) is not nn.MultiheadAttention:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return module.bias_k is None and not module.add_zero_attn and not hooks
