"""Which of many things that are tried together fail: adaptive group testing by halving."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from mint_compress.graph.groups import ChannelGroup


def tell_apart(
    groups: Mapping[int, ChannelGroup], fault: Callable[[Sequence[int]], str | None], *, trials: int
) -> dict[int, str]:
    """Find those that fail among groups that are tried together, halving what fails, in few trials.

    Groups whose names differ by numbers only mostly pass or fail alike: they are told from others
    first, and from each other while trials last. What is not told apart after so many trials is
    refused: never too little, and at a cost that is bounded.

    Parameters
    ----------
    groups
        Number -> group.
    fault
        What goes wrong with some of them, by number, or None.
    trials
        How often ``fault`` may be asked; with 1, all fail when any does.

    Returns
    -------
    dict
        Number -> reason, of those that fail.
    """
    kind = {i: re.sub(r"\d+", "#", group.name) for i, group in groups.items()}
    order = sorted(groups, key=lambda i: (kind[i], i))
    reason = fault(order) if order else None
    failing, failed, asked = ([(order, reason)] if reason else []), dict[int, str](), 1
    while failing:
        failing.sort(key=lambda f: (kind[f[0][0]] != kind[f[0][-1]], len(f[0])))
        some, reason = failing.pop()
        if len(some) == 1:
            failed[some[0]] = reason
        elif asked >= trials:
            failed.update(
                dict.fromkeys(some, f"too costly to tell apart (one of {len(some)} groups: {reason})")
            )
        else:
            borders = [at for at in range(1, len(some)) if kind[some[at - 1]] != kind[some[at]]]
            half = min(borders or [len(some) // 2], key=lambda at: abs(at - len(some) / 2))
            found = [(part, fault(part)) for part in (some[:half], some[half:])]
            asked += 2
            failing += [(part, why) for part, why in found if why]
            if not any(why for _, why in found):
                # right alone and wrong together: none of them can be trusted
                failed.update(dict.fromkeys(some, reason))
    return failed
