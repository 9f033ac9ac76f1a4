"""Attention within shifted windows, as torchvision's Swin Transformers have it, made of layers.

torchvision multiplies by the weights of ``qkv`` and ``proj`` without calling these layers, and divides the
width that it is given by the number of heads. Here queries, keys and values have a layer each, and the heads
may be fewer (Liu et al., Swin Transformer, ICCV 2021; Swin Transformer V2, CVPR 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.nn.attention.multihead import linear

MODULE = "torchvision.models.swin_transformer"
FIRST, SECOND = (MODULE, "ShiftedWindowAttention"), (MODULE, "ShiftedWindowAttentionV2")
LARGEST_SCALE = math.log(100.0)  # of the second version's cosines
APART = -100.0  # is added where two places of a window come from different sides of the image


class SeparateWindowAttention(nn.Module):
    """What torchvision's ShiftedWindowAttention and ShiftedWindowAttentionV2 compute.

    Attributes
    ----------
    num_heads
        How many heads are left.
    q_proj, k_proj, v_proj, out_proj
        Linear layers; a head's channels lie side by side.
    """

    relative_position_index: Tensor
    relative_position_bias_table: Tensor
    relative_coords_table: Tensor
    logit_scale: Tensor
    window_size: Sequence[int]
    scale: float

    def __init__(self, packed: nn.Module) -> None:
        super().__init__()
        own: Any = packed
        self.num_heads, self.window_size, self.shift_size = own.num_heads, own.window_size, own.shift_size
        self.attention_dropout, self.dropout = own.attention_dropout, own.dropout
        self.scale = (own.qkv.in_features // own.num_heads) ** -0.5
        self.has_cosines = _kind(packed) == SECOND
        biases = [None] * 3 if own.qkv.bias is None else list(own.qkv.bias.chunk(3))
        if self.has_cosines:
            biases[1] = None  # is not looked at
        made = [linear(w, b) for w, b in zip(own.qkv.weight.chunk(3), biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = made
        self.out_proj = linear(own.proj.weight, own.proj.bias)
        self.register_buffer("relative_position_index", own.relative_position_index)
        if self.has_cosines:
            self.logit_scale, self.cpb_mlp = own.logit_scale, own.cpb_mlp
            self.register_buffer("relative_coords_table", own.relative_coords_table)
        else:
            self.relative_position_bias_table = own.relative_position_bias_table
        self.train(packed.training)

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, height, width, channels), and so are the outputs."""
        batch, height, width = x.shape[:3]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        sides = x.shape[1:3]
        each = zip(self.window_size, self.shift_size, sides, strict=True)
        shifts = [0 if window >= side else shift for window, shift, side in each]
        if any(shifts):
            x = x.roll([-shift for shift in shifts], (1, 2))
        windows = self._windows(x).flatten(0, 2)  # (n * windows, places, channels)
        q, k, v = (
            layer(windows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = self._scores(q, k) + self._position_bias()
        if any(shifts):
            mask = self._mask(sides, shifts, like=scores)
            scores = (scores.unflatten(0, (batch, -1)) + mask).flatten(0, 1)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        y = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        y = F.dropout(y, self.dropout, self.training)
        cut: Tensor = y.unflatten(0, (batch, sides[0] // self.window_size[0], -1)).unflatten(
            3, self.window_size
        )
        y = cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shifts):
            y = y.roll(shifts, (1, 2))
        return y[:, :height, :width].contiguous()

    def _windows(self, x: Tensor) -> Tensor:
        """(n, height, width, channels) as (n, rows of windows, windows in a row, places, channels)."""
        high, wide = self.window_size
        cut: Tensor = x.unflatten(2, (-1, wide)).unflatten(1, (-1, high))
        return cut.transpose(2, 3).flatten(3, 4)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        if not self.has_cosines:
            return q * self.scale @ k.transpose(-2, -1)
        cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return cosines * self.logit_scale.clamp(max=LARGEST_SCALE).exp()

    def _position_bias(self) -> Tensor:
        """(1, heads, places, places), by how far two places are apart."""
        places = self.window_size[0] * self.window_size[1]
        if self.has_cosines:
            table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        else:
            table = self.relative_position_bias_table
        pairs: Tensor = table[self.relative_position_index].unflatten(0, (places, places))
        bias = pairs.permute(2, 0, 1)[None]
        return 16 * bias.sigmoid() if self.has_cosines else bias

    def _mask(self, sides: Sequence[int], shifts: Sequence[int], *, like: Tensor) -> Tensor:
        """(windows, 1, places, places): what is added to scores of places that are no neighbours."""
        rows, columns = (
            _regions(side, window, shift, like.device)
            for side, window, shift in zip(sides, self.window_size, shifts, strict=True)
        )
        regions = self._windows((3 * rows[:, None] + columns)[None, :, :, None]).flatten(0, 2)
        same = regions == regions.transpose(1, 2)
        return torch.zeros_like(same, dtype=like.dtype).masked_fill(~same, APART)[:, None]


def _regions(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which places along a side, after it was rolled, were neighbours before."""
    found = torch.zeros(side, dtype=torch.long, device=device)
    if shift:
        found[-window:] += 1
        found[-shift:] += 1
    return found


def _kind(module: nn.Module | None) -> tuple[str, str]:
    return type(module).__module__, type(module).__name__


def can_be_separate(module: nn.Module | None) -> bool:
    """Whether :class:`SeparateWindowAttention` computes what this module does."""
    return _kind(module) in (FIRST, SECOND) and not (module._forward_hooks or module._forward_pre_hooks)  # type: ignore[union-attr]
