"""Both engines on one network: where their channel groups differ, and which of them the proofs uphold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mint_compress.graph.choosing import proved
from mint_compress.graph.depgraph import TorchPruning
from mint_compress.graph.engines import Engine, Found, Refused
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_groups import ChannelLabels
from mint_compress.graph.passes import followed
from mint_compress.graph.reference import reference_copy
from mint_compress.nn.io import Inputs, by_position

NAMED = 3
"""Groups that differ and are named in a line."""

Upheld = Literal["graph", "labels", "both", "neither"]
Map = frozenset[frozenset[tuple[str, str, int]]]
"""What goes together: for each position its channels, as (layer, side, channel), and its part."""


@dataclass(frozen=True)
class Comparison:
    """What both engines say of one network.

    Attributes
    ----------
    refused
        Engine, ``graph`` or ``labels`` -> why it has no groups.
    differ
        First producer -> whom the proofs uphold, where the groups that may be cut are not the same. An
        engine that offers none is upheld where the other's is wrong.
    """

    refused: Mapping[str, str]
    differ: Mapping[str, Upheld]

    def __str__(self) -> str:
        if len(self.refused) == 2:
            return "; ".join(f"no {name}: {why}" for name, why in self.refused.items())
        if self.refused:
            ((name, why),) = self.refused.items()
            return f"{'labels' if name == 'graph' else 'graph'} only: {why}"
        upheld = (_named(whom, self.differ) for whom in dict.fromkeys(self.differ.values()))
        return f"differ: {'; '.join(upheld)}" if self.differ else "agree"


def _named(whom: Upheld, differ: Mapping[str, Upheld]) -> str:
    names = [name for name, upheld in differ.items() if upheld == whom]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{whom} upheld at {', '.join(names[:NAMED])}{more}"


def compared(model: nn.Module, example_inputs: Inputs) -> Comparison:
    """Ask both engines, whichever :func:`mint_compress.graph.finding.find_groups` would listen to.

    Groups that they have in common are proved or refuted for both, so only the others are tried.

    Parameters
    ----------
    model, example_inputs
        As for :func:`mint_compress.graph.finding.find_groups`.

    Raises
    ------
    MintError
        The network cannot be run on these inputs.
    """
    with by_position(model, example_inputs) as inputs:
        reference, recording = followed(*reference_copy(model, inputs))
        engines: dict[str, Engine] = {"graph": TorchPruning(), "labels": ChannelLabels(recording)}
        answers = {name: engine.groups(reference) for name, engine in engines.items()}
        refused = {name: a.reason for name, a in answers.items() if isinstance(a, Refused)}
        if refused:
            return Comparison(refused, {})
        graph, labels = (_offered(a.groups) for a in answers.values() if isinstance(a, Found))
        only_graph = proved(reference, [group for own, group in graph.items() if own not in labels])
        only_labels = proved(reference, [group for own, group in labels.items() if own not in graph])
    return Comparison({}, {d.name: d.upheld for d in _differences(only_graph, only_labels)})


def channel_map(group: ChannelGroup) -> Map:
    """What goes together in a group, whatever it is called and in whichever order."""
    at: dict[int, set[tuple[str, str, int]]] = {position: set() for position in range(group.width)}
    for m in group.members:
        for channel, position in zip(m.channels.tolist(), m.positions.tolist(), strict=True):
            at[position].add((m.layer, m.side, channel))
    for position, part in enumerate([] if group.parts is None else group.parts.tolist()):
        at[position].add(("", "part", part))
    return frozenset(map(frozenset, at.values()))


def _offered(groups: Sequence[ChannelGroup]) -> dict[Map, ChannelGroup]:
    """The groups that an engine would cut."""
    return {channel_map(g): g for g in groups if g.prunable}


@dataclass(frozen=True)
class _Difference:
    """Groups of the same layers, of which the engines do not say the same."""

    graph: tuple[ChannelGroup, ...] = ()
    labels: tuple[ChannelGroup, ...] = ()

    @property
    def name(self) -> str:
        return (self.graph + self.labels)[0].name

    @property
    def makers(self) -> set[str]:
        """Layers that make or pass on these channels."""
        return {m.layer for g in self.graph + self.labels for m in g.members if m.side != "in"}

    @property
    def upheld(self) -> Upheld:
        """Who is right: to offer what the proofs uphold, or to offer nothing where they uphold nothing."""
        graph, labels = (bool(own) and all(g.prunable for g in own) for own in (self.graph, self.labels))
        graph |= not self.graph and not labels
        labels |= not self.labels and not graph
        if graph and labels:
            return "both"
        return "graph" if graph else "labels" if labels else "neither"


def _differences(graph: Sequence[ChannelGroup], labels: Sequence[ChannelGroup]) -> list[_Difference]:
    found: list[_Difference] = []
    for one in [*(_Difference(graph=(g,)) for g in graph), *(_Difference(labels=(g,)) for g in labels)]:
        for other in [f for f in found if f.makers & one.makers]:
            one = _Difference(other.graph + one.graph, other.labels + one.labels)
            found.remove(other)
        found.append(one)
    return found
