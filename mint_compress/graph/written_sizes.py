"""Sizes that modules keep as attributes: by which of them channels are cut, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mint_compress.errors import our_own
from mint_compress.graph.labels import Reading, compact
from mint_compress.graph.written_numbers import Formula, Place, Written, WrittenShape

Gone = Mapping[tuple[str, str, Any, int], Sequence[int]]
"""Layer, kind, side and dimension -> the layer's own channels that go."""
Sizes = dict[str, dict[str, int | list[int]]]
"""Module -> attribute -> its new value."""


@dataclass(frozen=True, eq=False)
class Equation:
    """What a formula gives is the number of channels that stand along a dimension of some tensors."""

    formula: Formula
    labels: tuple[Tensor, ...]
    dim: int

    def left(self, gone: Tensor) -> int:
        """How many are left, all elements of the others being of units that are gone."""
        return sum(_left(own, self.dim, gone) for own in self.labels)


def _left(labels: Tensor, dim: int, gone: Tensor) -> int:
    """The most that are left along a dimension, anywhere: rows may lose different ones, but as many."""
    alive = ~torch.isin(compact(labels, keep=(dim,)), gone)
    return int(alive.sum(dim).max()) if alive.numel() else int(labels.shape[dim])


def _along(labels: Tensor, dim: int) -> Tensor:
    """All units that stand along a dimension."""
    units = compact(labels, keep=(dim,)).unique()
    real: Tensor = units[units > 0]
    return real


def _changes_along(labels: Tensor, dim: int) -> bool:
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def sizes_after(groups: Sequence[tuple[WrittenSizes, Gone]]) -> Sizes:
    """The attributes that change, and to what, once groups have lost channels.

    Parameters
    ----------
    groups
        For each what its reading knows, and what it loses. One reading answers for all together, but for
        heads only that in which they go as a whole.
    """
    common = next((w for w, _ in groups if w.equations and w.reading is not Reading.HEADS), WrittenSizes())
    lost: dict[WrittenSizes, dict[tuple[str, str, Any, int], list[int]]] = {}
    for written, gone in groups:
        own = lost.setdefault(written if written.reading is Reading.HEADS else common, {})
        for side, channels in gone.items():
            own.setdefault(side, []).extend(channels)
    sizes: Sizes = {}
    for written, all_gone in lost.items():
        for module, changed in written.after(all_gone).items():
            sizes.setdefault(module, {}).update(changed)
    return sizes


@dataclass(frozen=True, eq=False)
class WrittenSizes:
    """The sizes among a network's attributes, and the equations that hold for them.

    Attributes
    ----------
    values
        Every number that takes part in an equation, as it is.
    equations
        Of the calls in which such numbers cut or reshaped channels.
    made
        Layer or bare parameter -> units of its output channels, or of its elements.
    shapes
        Numbers that are sizes of tensors -> their labels, and the dimension: what these say needs no
        attribute.
    reading
        What goes together in it beyond what a pass shows. One in which heads go as a whole knows nothing of
        single channels.
    """

    values: Mapping[Place, int] = field(default_factory=dict)
    equations: Sequence[Equation] = ()
    made: Mapping[str, Tensor] = field(default_factory=dict)
    shapes: Mapping[Place, tuple[Tensor, int]] = field(default_factory=dict)
    reading: Reading | None = None

    def after(self, gone: Gone) -> Sizes:
        """The attributes that change once these channels are gone, with what makes the equations hold.

        An equation with one unknown settles it. What no equation settles stays: whether the network then
        does what it should is for a trial to say.
        """
        units = self._units(gone)
        asked = [(e.formula, e.left(units)) for e in self.equations] if len(units) else []
        asked = [*filter(self._changes, asked), *(one for one in asked if not self._changes(one))]
        known = {place: _left(own, dim, units) for place, (own, dim) in self.shapes.items()}
        while found := next(self._settled(asked, known), None):
            known |= found
        set_anew = {place: new for place, new in known.items() if place not in self.shapes}
        return _by_module({p: new for p, new in set_anew.items() if new != self.values[p]}, self.values)

    @property
    def ties(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Units that lose the same share."""
        yield from self.ties_by_shape
        if self.reading is Reading.NUMBERS:
            yield from self.ties_by_number

    @property
    def ties_by_number(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Units along the dimensions of two tensors whose sizes are the same attribute."""
        first: dict[Place, Tensor] = {}
        for equation in self.equations:
            place = equation.formula.place
            own = [labels for labels in equation.labels if _changes_along(labels, equation.dim)]
            if place is not None and own:
                units = torch.cat([_along(labels, equation.dim) for labels in own])
                if not torch.equal(first.setdefault(place, units), units):
                    yield first[place], units

    @property
    def ties_by_shape(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Units along one tensor's dimension, and along another's whose size is taken from that one's.

        It may be a part of it, ``c // self.heads``: both lose the same share.
        """
        for equation in self.equations:
            for place in sorted(equation.formula.places & self.shapes.keys()):
                labels, dim = self.shapes[place]
                yield _along(labels, dim), torch.cat([_along(own, equation.dim) for own in equation.labels])

    def _changes(self, asked: tuple[Formula, int]) -> bool:
        return asked[0].value(self.values) != asked[1]

    def _settled(
        self, asked: Iterable[tuple[Formula, int]], known: Mapping[Place, int]
    ) -> Iterator[dict[Place, int]]:
        for formula, wanted in asked:
            unknown = formula.places - known.keys()
            if len(unknown) == 1:
                (place,) = unknown
                tried = ({place: n} for n in range(self.values[place], 0, -1))
                fitting = (one for one in tried if formula.value({**known, **one}) == wanted)
                yield from (one for one, _ in zip(fitting, range(1), strict=False))

    def _units(self, gone: Gone) -> Tensor:
        found = [torch.zeros(0, dtype=torch.int64)]
        for (layer, kind, side, dim), channels in gone.items():
            if layer in self.made and (side == "out" or kind == "parameter"):
                along = dim if kind == "parameter" else 0
                found.append(self.made[layer].index_select(along, torch.tensor(channels)).flatten())
        units = torch.cat(found).unique()
        real: Tensor = units[units > 0]
        return real


def _by_module(changed: Mapping[Place, int], values: Mapping[Place, int]) -> Sizes:
    sizes: Sizes = {}
    for place, new in changed.items():
        own = sizes.setdefault(place.module, {})
        if place.item is None:
            own[place.attribute] = new
        else:
            items = sorted(p for p in values if p[:2] == place[:2])
            own[place.attribute] = [changed.get(p, values[p]) for p in items]
    return sizes


# ---- watching a pass


class WatchingSizes(TorchFunctionMode):
    """Sees with which numbers a forward pass cuts and reshapes tensors.

    Parameters
    ----------
    labels_of
        The labels of a tensor.
    paused
        Whether a layer is at work, whose tensors are none of ours.
    varying
        The dimensions along which channels run, of labels; None: the sizes of tensors remember nothing.
    """

    def __init__(
        self,
        labels_of: Callable[[Tensor], Tensor],
        paused: Callable[[], bool],
        varying: Callable[[Tensor], set[int]] | None,
    ) -> None:
        super().__init__()
        self._labels_of, self._paused, self._varying = labels_of, paused, varying
        self.equations: list[Equation] = []
        self.shapes: dict[Place, tuple[Tensor, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        find = _FOUND.get(getattr(func, "__name__", ""))
        if find is not None and not self._paused():
            with our_own():
                for number, tensors, dim in find(self._labels_of, args, kwargs, output):
                    shown = any(bool((compact(t) > 0).any()) for t in tensors)
                    if isinstance(number, Written) and shown:
                        self.equations.append(Equation(number.formula, tuple(tensors), dim))
        if self._varying is not None and not self._paused() and _gives_sizes(func):
            with our_own():
                output = self._remembered(args[0], output, self._varying)
        return output

    def _remembered(self, tensor: Tensor, given: Any, varying: Callable[[Tensor], set[int]]) -> Any:
        """A size, or all of a tensor, of which those that count channels remember it."""
        labels = self._labels_of(tensor)
        along = varying(labels)
        if not along or not isinstance(given, tuple):
            return given
        sizes = list(given)
        for dim in along:
            place = Place("", f"size {len(self.shapes)}")
            self.shapes[place] = labels, dim
            sizes[dim] = Written(sizes[dim], Formula(place))
        return WrittenShape(sizes)


def _gives_sizes(func: Any) -> bool:
    return func is torch.Tensor.size or getattr(func, "__self__", None) is torch.Tensor.shape


Found = Iterator[tuple[Any, list[Tensor], int]]
"""A number, the labels of tensors, and the dimension along which as many channels stand."""


def _reshaped(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    sizes = args[1:] or kwargs.get("shape", kwargs.get("size", ()))
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    for dim, size in enumerate(sizes):
        yield size, [labels_of(output)], dim


def _unflattened(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    given = dict(zip(("dim", "sizes"), args[1:], strict=False)) | kwargs
    first = given["dim"] % args[0].ndim if args else 0
    for place, size in enumerate(given["sizes"] if args else ()):
        yield size, [labels_of(output)], first + place


def _split(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    sizes, dim = _cut_arguments(args, kwargs, ("split_size_or_sections", "split_size", "split_sizes"))
    for size, part in zip(sizes if isinstance(sizes, tuple | list) else [sizes], output, strict=False):
        yield size, [labels_of(part)], dim


def _split_at(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    places, dim = _cut_arguments(
        args, kwargs, ("tensor_indices_or_sections", "indices_or_sections", "indices")
    )
    for count, place in enumerate(places if isinstance(places, tuple | list) else (), 1):
        yield place, [labels_of(part) for part in output[:count]], dim


def _cut_arguments(args: Any, kwargs: Any, names: Sequence[str]) -> tuple[Any, int]:
    rest = dict(zip(("what", "dim"), args[1:], strict=False)) | kwargs
    return next((rest[n] for n in ("what", *names) if n in rest), ()), rest.get("dim", 0)


def _narrowed(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    given = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | kwargs
    yield given.get("length"), [labels_of(output)], given.get("dim", 0)
    if args and isinstance(start := given.get("start"), Written) and start >= 0:
        yield start, [labels_of(args[0]).narrow(given["dim"], 0, start)], given["dim"]


def _indexed(labels_of: Any, args: Any, kwargs: Any, output: Any) -> Found:
    given, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    if not any(isinstance(end, Written) for i in index if isinstance(i, slice) for end in (i.start, i.stop)):
        return
    taken = [i for i in index if i is not None]
    if any(isinstance(i, Tensor | list | bool) for i in taken):
        return
    behind = len(taken) - taken.index(Ellipsis) - 1 if Ellipsis in taken else 0
    for place, item in enumerate(taken):
        dim = place if place < len(taken) - behind else given.ndim - len(taken) + place
        for end in (item.start, item.stop) if isinstance(item, slice) else ():
            if isinstance(end, Written) and abs(end) <= given.shape[dim]:
                first = 0 if end >= 0 else given.shape[dim] + int(end)
                size = end if end >= 0 else -end
                yield size, [labels_of(given).narrow(dim, first, int(size))], dim


_FOUND: dict[str, Callable[[Any, Any, Any, Any], Found]] = {
    "view": _reshaped,
    "reshape": _reshaped,
    "unflatten": _unflattened,
    "split": _split,
    "split_with_sizes": _split,
    "tensor_split": _split_at,
    "narrow": _narrowed,
    "__getitem__": _indexed,
}
"""Function -> what its numbers say."""
