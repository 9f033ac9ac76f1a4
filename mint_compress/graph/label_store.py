"""The labels of all tensors of a pass, and what the pass has shown beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mint_compress.graph.labels import Reading, Units, compact


class Labels:
    """The labels of all tensors of a pass; bare parameters get theirs when they are first met.

    ``multiplied`` says whether channels were multiplied with channels, as in attention; ``parts`` are the
    labels of what channels were cut into, a tensor a part, for every cut; ``made`` what each layer gave.
    ``together`` says whether there were rows or heads, where the reading asks for them.
    """

    def __init__(self, bare: dict[str, nn.Parameter], reading: Reading | None = None) -> None:
        self.reading, self.together = reading, False
        self.made: list[Tensor] = []
        self.units = Units()
        self.multiplied = False
        self.parts: list[tuple[Tensor, ...]] = []
        self.elements: dict[str, Tensor] = {}
        self._labels = WeakTensorKeyDictionary()
        self._bare = {id(p): (name, p) for name, p in bare.items() if p.numel()}

    def of(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor; all 0 when nothing is known about it."""
        found: Tensor | None = self._labels.get(tensor)
        if found is None and id(tensor) in self._bare:
            name, parameter = self._bare[id(tensor)]
            if name not in self.elements:
                self.elements[name] = self.units.fresh(parameter.numel()).reshape(parameter.shape)
            found = self.elements[name]
        if found is None:
            found = torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        return found

    def knows(self, value: Any) -> bool:
        """Whether it is a tensor with labels."""
        return isinstance(value, Tensor) and (value in self._labels or id(value) in self._bare)

    def is_bare(self, labels: Tensor) -> bool:
        """Whether all that has these labels, and anything does, is elements of bare parameters."""
        bare = [elements.flatten() for elements in self.elements.values()]
        made = self.units.but(torch.cat(bare)) if bare else None
        own = self.units.find(compact(labels)).unique()
        return made is not None and bool(own.any()) and not bool(torch.isin(own[own > 0], made).any())

    def has_heads(self, labels: Tensor, dims: set[int]) -> bool:
        """Whether one layer's channels stand in dimensions before these, where they are to go as heads."""
        before = self.units.varying(labels) - dims
        if self.reading is not Reading.HEADS or not before or max(before) > min(dims):
            return False
        own = self.units.find(compact(labels)).unique()
        return any(bool(torch.isin(own, self.units.find(made)).all()) for made in self.made)

    def as_heads(self, labels: Tensor, dims: set[int]) -> Tensor:
        """Labels whose channels go together along these dimensions."""
        self.together = True
        self.units.join_along(labels, dims)
        return self.units.find(labels)

    def put(self, tensor: Any, labels: Tensor) -> None:
        """Give a tensor its labels."""
        if isinstance(tensor, Tensor):
            self._labels[tensor] = labels.expand(tensor.shape)

    def forget(self) -> None:
        """Forget the tensors of the last pass, but not what was learned from them."""
        self._labels.clear()
