"""What cannot be reached, said to a person: how much can go, what stands in the way, what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.input_groups import MANY, MOST_FEATURES
from mint_compress.planning.candidates import Candidate
from mint_compress.planning.choices import removed_channels

Kind = Literal["parameters", "MACs", "latency"]
NAMED = 3
"""Layers that a message names."""


def unreachable(
    asked: float,
    what: Kind,
    most: float,
    upper_limit: float,
    groups: Sequence[ChannelGroup],
    candidates: Sequence[Candidate],
) -> str:
    """Say in one line that a share cannot go.

    Parameters
    ----------
    asked, most
        The share that was asked for, and the largest that can go.
    what
        What it is a share of.
    upper_limit
        The largest share of a group's positions that may go.
    groups, candidates
        All groups of the network, and what may go of those that are prunable.
    """
    percent = math.floor(1000 * most) / 10  # rounded down, so that it can be asked for
    return (
        f"{asked:.1%} of the {what} cannot go: the most is {percent:g} % with --upper-limit {upper_limit:g}"
        f"{blame(what, groups, candidates)}. Ask for a ratio up to {percent / 100:g}, or raise "
        f"--upper-limit{_remedy(groups)}."
    )


def blame(what: Kind, groups: Sequence[ChannelGroup], candidates: Sequence[Candidate]) -> str:
    """``; in the way: a (why), b (why)``, or nothing where nothing is."""
    layers = _in_the_way(what, groups, candidates)
    return f"; in the way: {', '.join(layers)}" if layers else ""


def _in_the_way(what: Kind, groups: Sequence[ChannelGroup], candidates: Sequence[Candidate]) -> list[str]:
    """The layers that count most among those that must stay whole, each with its reason."""
    whole = _whole_layers(groups, candidates)
    layers = groups[0].network.layers
    counts = {n: layers[n].parameters if what == "parameters" else layers[n].macs for n in whole}
    largest = sorted(counts, key=lambda name: -counts[name])[:NAMED]
    return [f"{name} ({whole[name]})" for name in largest]


def _whole_layers(groups: Sequence[ChannelGroup], candidates: Sequence[Candidate]) -> dict[str, str | None]:
    """Layer -> why its outputs stay, or that nothing of it can go at all; in the network's order."""
    reasons = {p: g.reason for g in groups if not g.prunable for p in (g.producers or (g.name,))}
    touched = {name for c in candidates for name in removed_channels([c.group], [c.largest_mask()])}
    return {
        name: reasons.get(name, "nothing of it can go")
        for name in groups[0].network.layers
        if name in reasons or name not in touched
    }


def _remedy(groups: Sequence[ChannelGroup]) -> str:
    """The option for the layer that reads the network's inputs and may drop some, if just one does."""
    fed = {m.layer for g in groups for m in g.members if m.side == "in"}
    unreached = {g.name for g in groups if not g.members}
    reading = [
        name
        for name, layer in groups[0].network.layers.items()
        if MANY <= layer.inputs <= MOST_FEATURES and name not in fed | unreached
    ]
    return f"; --prune-inputs {reading[0]} lets inputs go as well" if len(reading) == 1 else ""
