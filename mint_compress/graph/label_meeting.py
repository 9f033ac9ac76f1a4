"""Labels of what comes of tensors that meet: element by element, or in a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mint_compress.graph.labels import Units, aligned, compact

GATE = "its only channel scales others"
"""Why a channel stays that is multiplied with many."""


class _Operand(NamedTuple):
    """One of the tensors that meet element by element."""

    labels: Tensor
    """With a dimension for each of the result."""
    varying: set[int]
    """Dimensions along which they change."""

    @property
    def has_channels(self) -> bool:
        return bool(compact(self.labels).any())

    @property
    def is_single(self) -> bool:
        """Whether it is one channel, or one element."""
        return self.labels.numel() <= 1 or not self.varying

    def is_spread_over(self, other: _Operand, shape: Sequence[int]) -> bool:
        """Whether one element of this meets many channels of the other."""
        return any(self.labels.shape[dim] == 1 for dim in other.varying if shape[dim] > 1)

    def meets_all_of(self, other: _Operand) -> bool:
        """Whether each channel of this meets the same elements of the other, channels among them."""
        alike = any(other.labels.shape[dim] == 1 for dim in self.varying)
        return alike and bool(other.varying) and other.has_channels


def meet(units: Units, given: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Labels of what comes of tensors that meet element by element.

    Channels at the same element go together. A channel that meets a constant as wide as itself
    stays; one that meets a single value does not care, but a single channel that is spread over
    others stays.
    """
    operands = [_Operand(labels, units.varying(labels)) for labels in (aligned(t, len(shape)) for t in given)]
    result: Tensor | None = None
    for operand in operands:
        if not operand.has_channels:
            continue
        others = [other for other in operands if other is not operand]
        scales = any(operand.is_spread_over(other, shape) for other in others)
        if scales and operand.is_single:
            units.freeze(operand.labels, GATE)
            continue
        if scales and any(operand.meets_all_of(other) for other in others):
            _hold_all(units, others)
        _hold_beside_constants(units, operand, others)
        labels = operand.labels.expand(list(shape))
        result = labels if result is None else united(units, result, labels)
    return torch.zeros((), dtype=torch.int64).expand(list(shape)) if result is None else result


def _hold_all(units: Units, operands: Sequence[_Operand]) -> None:
    """Freeze what takes part in an outer product."""
    for operand in operands:
        if operand.varying:
            units.freeze(operand.labels, "its channels meet every channel of another layer")


def _hold_beside_constants(units: Units, operand: _Operand, others: Sequence[_Operand]) -> None:
    """Freeze the channels that meet an element that is no channel, of something as wide as they are.

    Where it is as wide along some of their dimensions, as rotations within each head are, channels go
    together along these, and may go along the others.
    """
    bare = compact(operand.labels)
    for other in others:
        against = compact(other.labels)
        wide = {dim for dim in operand.varying if other.labels.shape[dim] > 1}
        if not wide or not bool((against == 0).any()):
            continue
        if operand.varying - wide:
            units.join_along(operand.labels, wide)
        else:
            one, two = torch.broadcast_tensors(bare, against)
            units.freeze(one[(two == 0) & (one > 0)], "its channels meet values of a fixed width")


def united(units: Units, one: Tensor, other: Tensor) -> Tensor:
    """Labels of either; where both have one these go together."""
    units.join(one, other)
    return torch.where(one == 0, other, one) if bool((compact(one) == 0).any()) else one


def product(units: Units, one: Tensor, other: Tensor) -> Tensor:
    """Labels of a matrix product ``(..., n, k) @ (..., k, m)``.

    Channels that are summed over go together in pairs; where such sums stand side by side in a
    batch dimension (attention heads), all channels of one of them go together, and the result is
    labelled with it. So they do there where each channel meets each of the other factor (attention over
    channels, and what it then sums).
    """
    shape = (*one.shape[:-1], other.shape[-1])
    left, right = units.varying(one), units.varying(other)
    k, n = one.ndim - 1, one.ndim - 2
    if k in left and n in right:
        return _contracted(units, one, other).expand(shape)
    if left & right & set(range(n)) and (k in left or n in right or (n in left and k in right)):
        return _as_heads(units, one, other).expand(shape)
    for labels, sides, dim in ((one, left, k), (other, right, n)):
        if dim in sides:
            units.freeze(labels, "its channels are summed with fixed weights")
    rows = units.find(one).narrow(k, 0, 1) if k not in left else None
    columns = units.find(other).narrow(n, 0, 1) if n not in right else None
    if rows is None or columns is None:
        found = rows if rows is not None else columns
        assert found is not None
        return found.expand(shape)
    if n in left and k in right:
        for labels in (one, other):
            units.freeze(labels, "its channels meet every channel of another layer")
    units.join(rows, columns)
    return torch.where(rows.expand(shape) == 0, columns.expand(shape), rows.expand(shape))


def _as_heads(units: Units, one: Tensor, other: Tensor) -> Tensor:
    """Labels ``(..., 1, 1)`` of products side by side: all channels of each go together."""
    tops = []
    for factor in (one, other):
        bare = compact(factor, keep=range(factor.ndim - 2))
        tops.append(bare.amax((-2, -1), keepdim=True))
        units.join(tops[-1], bare)
    units.join(*tops)
    return units.find(torch.maximum(*tops))


def _contracted(units: Units, one: Tensor, other: Tensor) -> Tensor:
    """Labels ``(..., 1, 1)`` of sums over channels of both factors."""
    left = compact(one, keep=range(one.ndim - 2)).amax(-2, keepdim=True).transpose(-2, -1)
    right = compact(other, keep=range(other.ndim - 2)).amax(-1, keepdim=True)
    units.join(left, compact(one).transpose(-2, -1))
    units.join(right, compact(other))
    units.join(left, right)
    summed = units.find(torch.maximum(left, right))
    if not any(d < one.ndim - 2 for d in units.varying(summed)):
        return torch.zeros((), dtype=torch.int64).expand(*one.shape[:-2], 1, 1)
    head = summed.amax(-2, keepdim=True)
    units.join(head, summed)
    return units.find(head)
