"""Numbers that modules keep as attributes and that remember where they come from, through arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn


class Place(NamedTuple):
    """Where a number is kept: an attribute of a module, or an item of one that holds several."""

    module: str
    attribute: str
    item: int | None = None


@dataclass(frozen=True)
class Formula:
    """How a number was computed from attributes: one of them, or an operation on numbers and formulas."""

    place: Place | None = None
    operation: Callable[..., int] = operator.pos
    parts: tuple[Formula | int, ...] = ()

    @property
    def places(self) -> frozenset[Place]:
        """All attributes that take part."""
        if self.place is not None:
            return frozenset({self.place})
        return frozenset().union(*(p.places for p in self.parts if isinstance(p, Formula)))

    def value(self, of: Mapping[Place, int]) -> int:
        """The number, for these attributes; 0 where a division fails."""
        if self.place is not None:
            return of[self.place]
        try:
            return self.operation(*(p.value(of) if isinstance(p, Formula) else p for p in self.parts))
        except ZeroDivisionError:
            return 0


class Written(int):
    """A number that remembers where it comes from, through whole-number arithmetic."""

    formula: Formula

    def __new__(cls, value: int, formula: Formula) -> Written:
        """The number ``value``, which ``formula`` gives."""
        made = super().__new__(cls, value)
        made.formula = formula
        return made

    def __neg__(self) -> Written:
        """The number below zero, as a slice from the end has it."""
        return Written(-int(self), Formula(operation=operator.neg, parts=(self.formula,)))


class WrittenShape(tuple[int, ...]):
    """The shape of a tensor, some of its sizes numbers that remember it."""

    def numel(self) -> int:
        """Elements of a tensor of this shape."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return WrittenShape(found) if isinstance(found, tuple) else found


def _arithmetic(operation: Callable[[int, int], int], *, reflected: bool) -> Callable[[Written, Any], Any]:
    def computed(self: Written, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        parts = tuple(n.formula if isinstance(n, Written) else int(n) for n in pair)
        return Written(operation(int(pair[0]), int(pair[1])), Formula(operation=operation, parts=parts))

    return computed


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _prefix in ("", "r"):
        _operation = getattr(operator, _name)
        setattr(Written, f"__{_prefix}{_name}__", _arithmetic(_operation, reflected=bool(_prefix)))


@contextmanager
def remembering(model: nn.Module, but: tuple[type[nn.Module], ...]) -> Iterator[dict[Place, int]]:
    """Let the numbers that modules keep remember where they come from; they are put back.

    Parameters
    ----------
    model
        Its modules' attributes are replaced meanwhile.
    but
        Classes of modules whose sizes are known otherwise.
    """
    replaced, values = [], dict[Place, int]()
    for name, module in model.named_modules():
        for attribute, value in list(vars(module).items()) if not isinstance(module, but) else ():
            if not attribute.startswith("_") and (watched := _watched(Place(name, attribute), value, values)):
                vars(module)[attribute] = watched
                replaced.append((module, attribute, value, watched))
    try:
        yield values
    finally:
        for module, attribute, value, watched in replaced:
            now = vars(module).get(attribute)
            if now is watched:
                vars(module)[attribute] = value
            elif isinstance(now, Written):  # one that counts
                vars(module)[attribute] = int(now)


def _watched(place: Place, value: Any, values: dict[Place, int]) -> Any:
    """The number, or the numbers, as ones that remember; None for anything else."""
    if type(value) is int:
        values[place] = value
        return Written(value, Formula(place))
    if type(value) in (tuple, list) and value and all(type(n) is int for n in value):
        return type(value)(_watched(place._replace(item=i), n, values) for i, n in enumerate(value))
    return None
