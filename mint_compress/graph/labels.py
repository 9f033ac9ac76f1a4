"""Channel labels: which channel every element of a tensor belongs to, and which channels go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto

import torch
from torch import Tensor


class Reading(Enum):
    """With which others channels go that cannot go by themselves."""

    SIZES = auto()
    """With those whose width theirs is written or taken from."""
    ROWS = auto()
    """With those at the same place of the other rows that a reshape lays them out in, as a shuffle does."""
    NUMBERS = auto()
    """With those of which a module says by the same attribute how many there are, as of each of its heads."""
    HEADS = auto()
    """With all of their head, where a layer or a parameter is applied to every head, as norms of queries."""


class Units:
    """Disjoint sets of channels, each channel a unit with a number of its own; 0 is no channel.

    Labels are int64 tensors of unit numbers, shaped like the tensors that they describe. Where a
    label is the same along a dimension it is expanded (stride 0), so that it costs no memory.
    """

    def __init__(self) -> None:
        self._root = torch.zeros(1, dtype=torch.int64)
        self._frozen: list[tuple[Tensor, str]] = []

    def fresh(self, count: int) -> Tensor:
        """``(count,)`` new units."""
        first = len(self._root)
        new = torch.arange(first, first + count)
        self._root = torch.cat([self._root, new])
        return new

    def find(self, labels: Tensor) -> Tensor:
        """The smallest unit of each label's set, in the labels' shape."""
        bare = compact(labels)
        return self._root[bare].expand(labels.shape)

    def but(self, units: Tensor) -> Tensor:
        """The sets that all other units are in."""
        others = torch.ones(len(self._root), dtype=torch.bool)
        others[units] = False
        others[0] = False
        found: Tensor = self._root[others].unique()
        return found

    def join(self, one: Tensor, other: Tensor) -> None:
        """Put units together element by element; 0 stays out of it. Shapes broadcast."""
        one, other = (t.flatten() for t in torch.broadcast_tensors(*_compact_together(one, other)))
        while True:
            a, b = self._root[one], self._root[other]
            differ = (a != b) & (a > 0) & (b > 0)
            if not bool(differ.any()):
                return
            one, other = one[differ], other[differ]
            low, high = torch.minimum(a[differ], b[differ]), torch.maximum(a[differ], b[differ])
            self._root.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(after := self._root[self._root], self._root):
                self._root = after

    def freeze(self, labels: Tensor, reason: str) -> None:
        """These channels stay, for this reason."""
        units = compact(labels).unique()
        units = units[units > 0]
        if len(units):
            self._frozen.append((units, reason))

    def frozen(self) -> dict[int, str]:
        """Root of every set that stays -> the first reason given."""
        reasons: dict[int, str] = {}
        for units, reason in self._frozen:
            for root in self._root[units].unique().tolist():
                reasons.setdefault(root, reason)
        return reasons

    def across(self, labels: Tensor, dim: int) -> Tensor:
        """Join what stands at the same index of ``dim``, wherever else it stands; one label per index."""
        size = labels.shape[dim]
        rows = self.find(labels).movedim(dim, 0)
        rows = compact(rows, keep=(0,)).reshape(size, -1)
        first = rows.amax(1)
        self.join(first[:, None], rows)
        return self.find(first)

    def folded(self, labels: Tensor, groups: int) -> Tensor:
        """Join the channels at the same place in each of ``groups`` equal runs of channels."""
        if groups == 1:
            return labels
        runs = labels.reshape(groups, -1)
        first = runs.amax(0)
        self.join(first.expand(runs.shape), runs)
        return self.find(labels)

    def reduced(self, labels: Tensor, dims: Iterable[int], *, keepdim: bool) -> Tensor:
        """The label along ``dims`` where there is only one, 0 where there are several.

        Where channels also stand along other dimensions, what is reduced goes together: channels at the same
        place in each of some branches that are summed, all of a head whose norm is taken.
        """
        dims = sorted({d % labels.ndim for d in dims})
        varying = self.varying(labels)
        if varying.difference(dims):
            self.join_along(labels, varying.intersection(dims))
        labels = self.find(labels)
        for dim in dims:
            part = compact(labels, keep=(d for d in range(labels.ndim) if d != dim))
            high = part.amax(dim, keepdim=True)
            low = torch.where(part == 0, high, part).amin(dim, keepdim=True)
            labels = torch.where(low == high, low, 0)
        if not keepdim:
            for dim in reversed(dims):
                labels = labels.squeeze(dim)
        return labels

    def join_along(self, labels: Tensor, dims: Iterable[int]) -> None:
        """Put what stands along these dimensions together, wherever else it stands."""
        for dim in dims:
            part = compact(self.find(labels), keep=(dim,))
            self.join(part.amax(dim, keepdim=True), part)

    def varying(self, labels: Tensor) -> set[int]:
        """Dimensions along which the label changes."""
        bare = compact(self.find(labels))
        wide = [d for d in range(bare.ndim) if bare.shape[d] > 1]
        return {d for d in wide if bool((bare != bare.narrow(d, 0, 1)).any())}


def compact(labels: Tensor, keep: Iterable[int] = ()) -> Tensor:
    """Expanded dimensions brought back to size 1, except those to keep."""
    kept = set(keep)
    for dim in range(labels.ndim):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1 and dim not in kept:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _compact_together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the dimensions along which neither changes; the others are expanded as needed."""
    ndim = max(one.ndim, other.ndim)
    return compact(aligned(one, ndim)), compact(aligned(other, ndim))


def aligned(labels: Tensor, ndim: int) -> Tensor:
    """With dimensions of size 1 in front, as broadcasting has it."""
    return labels[(None,) * (ndim - labels.ndim)]


def spread(channels: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """One label per index of ``dim``, for a whole tensor of ``shape``."""
    sizes = [1] * len(shape)
    sizes[dim] = len(channels)
    return channels.reshape(sizes).expand(list(shape))
