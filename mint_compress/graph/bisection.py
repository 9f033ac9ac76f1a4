"""Which of many groups that are tried together fail: adaptive group testing by halving."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mint_compress.graph.groups import ChannelGroup


@dataclass(frozen=True)
class _Suspects:
    """Groups that failed when they were tried together, in order, and what went wrong."""

    numbers: Sequence[int]
    reason: str


def tell_apart(
    groups: Mapping[int, ChannelGroup], fault: Callable[[Sequence[int]], str | None], *, trials: int
) -> dict[int, str]:
    """Refuse the groups that fail, found among all by trying many together, in few trials.

    This is adaptive group testing (Dorfman, "The detection of defective members of large populations",
    Annals of Mathematical Statistics 1943): all are tried together, and what fails is halved until
    single groups are left, as in binary splitting (Hwang, "A method for detecting all defective members
    in a population by group testing", JASA 1972). One that fails among n of a kind is found in
    1 + 2 ceil(log2 n) trials at most. Two things differ from the textbook:

    - Groups whose names differ by numbers only are of one kind and mostly pass or fail alike. Sets of
      several kinds are halved first, between two kinds, and larger sets before smaller ones.
    - Groups may fail together and pass apart. Where both halves of a set that fails pass, none of the
      set can be trusted, and all of it is refused. Another group that fails may hide this: those that
      are left must be tried again, all together, before they are trusted as a whole.

    When the trials are spent, what is not told apart is refused: some groups too many then, but never
    one too few that fails by itself, and at a cost that is bounded.

    Parameters
    ----------
    groups
        Number -> group.
    fault
        What goes wrong with some of them, by number, or None. It must not depend on earlier calls.
    trials
        How often ``fault`` may be asked: a set is halved, at two trials, while fewer have been spent, so
        that it is asked ``trials + 1`` times at most. With 1, all are refused when they fail together.

    Returns
    -------
    dict
        Number -> reason, of those that are refused.
    """
    kinds = {i: re.sub(r"\d+", "#", group.name) for i, group in groups.items()}
    order = sorted(groups, key=lambda i: (kinds[i], i))
    refused: dict[int, str] = {}
    waiting = _failing([order], fault) if order else []
    spent = 1
    while waiting:
        suspects = _next(waiting, kinds)
        waiting.remove(suspects)
        numbers, reason = suspects.numbers, suspects.reason
        if len(numbers) == 1:
            refused[numbers[0]] = reason
        elif spent >= trials:
            told = f"too costly to tell apart (one of {len(numbers)} groups: {reason})"
            refused.update(dict.fromkeys(numbers, told))
        else:
            found = _failing(_halves(numbers, kinds), fault)
            spent += 2
            waiting += found
            if not found:  # right apart and wrong together
                refused.update(dict.fromkeys(numbers, reason))
    return refused


def _failing(sets: Sequence[Sequence[int]], fault: Callable[[Sequence[int]], str | None]) -> list[_Suspects]:
    tried = [(numbers, fault(numbers)) for numbers in sets]
    return [_Suspects(numbers, reason) for numbers, reason in tried if reason]


def _next(waiting: Sequence[_Suspects], kinds: Mapping[int, str]) -> _Suspects:
    """A set of several kinds before one of a single kind, then the largest, then the latest."""

    def urgency(suspects: _Suspects) -> tuple[bool, int]:
        numbers = suspects.numbers
        return kinds[numbers[0]] != kinds[numbers[-1]], len(numbers)

    return max(reversed(waiting), key=urgency)


def _halves(numbers: Sequence[int], kinds: Mapping[int, str]) -> tuple[Sequence[int], Sequence[int]]:
    """Two parts of about the same size, of different kinds where there are several."""
    middle = len(numbers) / 2
    borders = [at for at in range(1, len(numbers)) if kinds[numbers[at - 1]] != kinds[numbers[at]]]
    half = min(borders or [int(middle)], key=lambda at: abs(at - middle))
    return numbers[:half], numbers[half:]
