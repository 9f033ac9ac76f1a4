"""What an option is: a field of a settings class that knows what it means and which values can work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

from mint_compress.errors import MintError


class Rule(NamedTuple):
    """Which values of an option can work, as a test and in words: ``NAME must WORDS, not VALUE``."""

    holds: Callable[[Any], bool]
    words: str


def _whole(least: int) -> Rule:
    def fits(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63

    return Rule(fits, f"be a whole number, at least {least}")


def _numbers(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(v, Real) and fits(v) for v in value)


SHARE = Rule(lambda v: isinstance(v, Real) and 0 < float(v) < 1, "lie between 0 and 1")
LIMIT = Rule(lambda v: isinstance(v, Real) and 0 < float(v) <= 1, "lie between 0 and 1")
POSITIVE = Rule(lambda v: isinstance(v, Real) and 0 < float(v) < math.inf, "be a positive number")
FASTER = Rule(lambda v: isinstance(v, Real) and 1 < float(v) < math.inf, "be a number above 1")
AMOUNT = Rule(lambda v: isinstance(v, Real) and 0 <= float(v) < math.inf, "be a number, at least 0")
COUNT = _whole(1)
WHOLE = _whole(0)
SHAPE = Rule(
    lambda v: _numbers(v, lambda n: isinstance(n, Integral) and int(n) > 0),
    "be positive whole numbers without the batch",
)
FINITE = Rule(lambda v: _numbers(v, math.isfinite), "be finite numbers")
SCALES = Rule(lambda v: _numbers(v, lambda s: 0 < s < math.inf), "be positive numbers")


def is_place(value: str) -> bool:
    """Whether it says where an object of somebody else's is: ``package.module:object``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value) is not None


OBJECT = Rule(lambda v: not isinstance(v, str) or is_place(v), "be package.module:name")


@dataclass(frozen=True)
class Option:
    """One option of the command and of the library.

    Attributes
    ----------
    name
        As an argument of the library; ``--flag`` of the command follows from it.
    default
        ``True`` makes the flag ``--no-NAME``, ``False`` makes it ``--NAME``.
    help, remedy
        What it means; what to do about a value that cannot work.
    metavar
        What stands for the value in the help; flags have none.
    kind
        What a word of the command line becomes.
    several
        ``commas``: one value of several parts; ``again``: the option may be repeated.
    rule, choices, further
        Which values can work; ``further`` finds more choices, and is asked only when those do not do.
    default_text
        What the help says of the default where it is no value.
    alias
        An older or another name, which the help does not list.
    short
        A second flag of one letter.
    """

    default: Any
    help: str
    metavar: str | None = None
    kind: type = str
    several: Literal["", "commas", "again"] = ""
    rule: Rule | None = None
    choices: tuple[str, ...] = ()
    further: Callable[[], tuple[str, ...]] | None = None
    remedy: str = ""
    default_text: str = ""
    alias: str = ""
    short: str = ""
    name: str = ""

    @property
    def flag(self) -> str:
        """``--upper-limit``, or ``--no-compensate`` for what is on by default."""
        return ("--no-" if self.default is True else "--") + self.name.replace("_", "-")

    def check(self, value: Any) -> None:
        """Refuse a value that cannot work.

        Raises
        ------
        MintError
            The name, the value and the remedy in one line.
        """
        spoken = self.name.replace("_", "-")
        if value is None and self.default is None:
            return
        if self.rule is not None and not self.rule.holds(value):
            raise MintError(f"{spoken} must {self.rule.words}, not {value!r}. {self.remedy}".rstrip())
        if self.choices and not self._is_one_of(value, self.choices):
            known = (*self.choices, *(self.further() if self.further else ()))
            if not self._is_one_of(value, known):
                raise MintError(f"Unknown {spoken} {value!r}. Choose from: {', '.join(known)}.")

    @staticmethod
    def _is_one_of(value: Any, choices: Sequence[str]) -> bool:
        """Whether it is a choice; ``cuda:N`` stands for any number."""
        patterns = [re.escape(choice).replace(":N", r":\d+") for choice in choices]
        return isinstance(value, str) and any(re.fullmatch(pattern, value) for pattern in patterns)


def option(default: Any, help: str, **rest: Any) -> Any:
    """A field of a settings class, with what is to be said about it."""
    kw_only = rest.pop("kw_only", True)
    return field(default=default, kw_only=kw_only, metadata={"option": Option(default, help, **rest)})


def options_of(group: type[Group]) -> dict[str, Option]:
    """Field -> its option, in the order of the class."""
    found = {f.name: f.metadata["option"] for f in fields(group)}
    return {name: o if o.name else replace(o, name=name) for name, o in found.items()}


@dataclass(frozen=True)
class Group:
    """Options that one stage looks at; each value is checked when the object is made."""

    def __post_init__(self) -> None:
        for name, one in options_of(type(self)).items():
            value = getattr(self, name)
            if one.several and value is not None:
                # lists are taken too, and a pattern alone; settings are compared and hashed
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, value)
            one.check(value)
