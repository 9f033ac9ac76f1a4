"""Networks within the keys of a file: below a prefix, and without what training left among them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mint_compress.checkpoints.training_keys import is_averaged, is_training
from mint_compress.checkpoints.wrappings import listed

DEEPEST = 6
"""Wrappers around a network, such as the four of ``model.module.net.backbone.``."""


@dataclass(frozen=True)
class Part:
    """Some keys of a file, as the network that they may belong to has them.

    ``prefix`` is what was before each of them, with its last dot; ``keys`` maps the name of a tensor
    in the network to its key in the file.
    """

    prefix: str
    keys: dict[str, str]

    @property
    def name(self) -> str:
        """The prefix as the name of a set of weights."""
        return self.prefix.removesuffix(".")

    @property
    def in_file(self) -> frozenset[str]:
        """Its keys, as the file has them."""
        return frozenset(self.keys.values())

    def shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name in the network -> shape, given those of all keys in the file."""
        return {name: shapes[key] for name, key in self.keys.items()}


@dataclass(frozen=True)
class Choice:
    """The part that is taken, the other networks beside it, and the keys that belong to none of them."""

    part: Part
    others: tuple[Part, ...] = ()
    further: tuple[str, ...] = ()

    def notes(self, asked: bool) -> tuple[str, ...]:
        """What was done to the keys, a line each."""
        found = []
        if self.others:
            taken, *others = (p.prefix or "no prefix" for p in (self.part, *self.others))
            choice = "as asked" if asked else "--weights NAME takes another"
            beside = f"the file has weights under {listed(others)} as well"
            found.append(f"took the weights under {listed([taken])}, {choice}; {beside}")
        elif self.part.prefix:
            found.append(f"took the prefix {listed([self.part.prefix])} off the keys")
        if self.further:
            keys = "1 key that does" if len(self.further) == 1 else f"{len(self.further)} keys that do"
            found.append(f"left out {keys} not belong to the network: {listed(self.further)}")
        return tuple(found)


def parts(keys: Collection[str]) -> list[Part]:
    """All keys, then those below each prefix; each also without the keys that training left there."""
    below: dict[str, dict[str, str]] = {"": {}}
    for key in keys:
        pieces = key.split(".", DEEPEST)
        for depth in range(len(pieces)):
            prefix = "".join(f"{piece}." for piece in pieces[:depth])
            below.setdefault(prefix, {})[key[len(prefix) :]] = key
    found = []
    for prefix, names in below.items():
        found.append(Part(prefix, names))
        needed = {name: key for name, key in names.items() if not is_training(name)}
        if 0 < len(needed) < len(names):
            found.append(Part(prefix, needed))
    return found


def chosen(fits: Iterable[Part], keys: Collection[str], name: str | None = None) -> Choice:
    """The largest of the parts that are networks; what is called an average of others comes last.

    Parameters
    ----------
    fits
        Parts of ``keys``, at least one of them.
    keys
        All keys of the file.
    name
        Of the part that was asked for.
    """
    ordered = sorted(fits, key=lambda part: (is_averaged(part.prefix), -len(part.keys)))
    part = next(p for p in ordered if name is None or p.name == name)
    separate = [part]
    for other in ordered:
        # a network within a network is a part of it
        if all(p.in_file.isdisjoint(other.in_file) for p in separate):
            separate.append(other)
    taken = frozenset[str]().union(*(p.in_file for p in separate))
    return Choice(part, tuple(separate[1:]), tuple(key for key in keys if key not in taken))
