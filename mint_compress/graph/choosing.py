"""Which engine finds a network's channel groups: asked, its groups proved, and chosen with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mint_compress.errors import MintError
from mint_compress.graph.engines import Engine, Found, Refused
from mint_compress.graph.groups import HEAD, ChannelGroup
from mint_compress.graph.label_groups import ChannelLabels
from mint_compress.graph.label_tracing import Recording
from mint_compress.graph.labels import Reading
from mint_compress.graph.permutation_check import map_faults
from mint_compress.graph.reference import Reference
from mint_compress.graph.removal_check import removable
from mint_compress.graph.ties import tied
from mint_compress.nn.counting import shared_parameters
from mint_compress.progress import Progress

STEPS = 3
"""Of the analysis: following the channels, Torch-Pruning's graph, the labels."""


@dataclass(frozen=True)
class Answer:
    """Channel groups, and where they come from.

    Attributes
    ----------
    groups
        In the order in which the engine met them, proved.
    engine
        The name of the engine that found them.
    why
        Why that one.
    """

    groups: Sequence[ChannelGroup]
    engine: str
    why: str


def chosen(
    reference: Reference, graph: Engine, labels: ChannelLabels, ignored: set[str], tell: Progress
) -> Answer:
    """Who answers: Torch-Pruning's graph where it is affordable and right, the labels otherwise.

    Parameters
    ----------
    reference
        The network, and what it gives; it is left as it was.
    graph, labels
        The two engines.
    ignored
        Names of layers whose output channels stay, with whatever is in them.
    tell
        Called as ("analyse", 2, 3) when the graph has had its turn.

    Raises
    ------
    MintError
        Neither engine has groups.
    """
    if isinstance(labels.recording, Refused):
        found = _proved_apart(reference, graph.groups(reference), ignored)
        why = f"the channels could not be followed ({labels.recording.reason})"
    else:
        found, why = _right_as_a_whole(reference, graph, labels.recording, ignored), "it is right as a whole"
    tell("analyse", 2, STEPS)
    if isinstance(found, Found):
        return Answer(found.groups, graph.name, why)
    instead = _proved_apart(reference, labels.groups(reference), ignored)
    if isinstance(instead, Refused):
        raise MintError("The network is too costly to analyse as a whole; prune its parts one by one.")
    return Answer(_with_tied(reference, instead.groups, ignored), labels.name, found.reason)


def _with_tied(
    reference: Reference, groups: Sequence[ChannelGroup], ignored: set[str]
) -> Sequence[ChannelGroup]:
    """The groups; those that can lose channels only together, or in pairs or heads, as one."""
    for reading in Reading:
        found = _without_those_that_stay(reference.model, tied(reference, groups, reading), ignored)
        for joined in proved(reference, found):
            if not joined.prunable:
                continue
            own = [i for i, g in enumerate(groups) if _takes_the_place(joined, g)]
            if own:
                groups = [g if i != own[0] else joined for i, g in enumerate(groups) if i not in own[1:]]
    return groups


def _takes_the_place(joined: ChannelGroup, group: ChannelGroup) -> bool:
    """Not that of a group that stays for what other layers of it are: that is still told of."""
    makers = set(joined.producers)
    more = not group.prunable and bool(set(group.producers) - makers) and group.name != joined.name
    return bool(makers & set(group.producers)) and not more


def _right_as_a_whole(
    reference: Reference, graph: Engine, recording: Recording, ignored: set[str]
) -> Found | Refused:
    """The graph's groups, proved, if every one of them is right and none is missing; else why not."""
    if recording.needs_labels is not None:
        return Refused(recording.needs_labels)
    found = graph.groups(reference)
    if isinstance(found, Refused):
        return found
    for group in found.groups:
        if group.reason not in (None, HEAD):
            return Refused(f"the graph's group of {group.name} is not right: {group.reason}")
    missing = recording.sliceable - {m.layer for g in found.groups for m in g.members if m.side != "in"}
    if missing:
        return Refused(f"the graph has no group for {min(missing)}")
    return _proved_together(reference, _without_those_that_stay(reference.model, found.groups, ignored))


def _proved_together(reference: Reference, groups: Sequence[ChannelGroup]) -> Found | Refused:
    """The groups, unless a proof of all at once fails: that costs little, and does not tell them apart."""
    mapped = _map_proved(reference, groups, apart=False)
    if wrong := _first_wrong(groups, mapped):
        return Refused(wrong)
    kept = removable(reference, mapped, apart=False)
    wrong = _first_wrong(mapped, kept)
    return Refused(wrong) if wrong else Found(kept)


def _first_wrong(before: Sequence[ChannelGroup], after: Sequence[ChannelGroup]) -> str | None:
    """Why a group is left alone now, and was not before."""
    wrong = (a for b, a in zip(before, after, strict=True) if b.prunable != a.prunable)
    return next((f"the graph is not right as a whole: {g.reason}" for g in wrong), None)


def _proved_apart(reference: Reference, found: Found | Refused, ignored: set[str]) -> Found | Refused:
    if isinstance(found, Refused):
        return found
    return Found(proved(reference, _without_those_that_stay(reference.model, found.groups, ignored)))


def proved(reference: Reference, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups with what the proofs say of each: those that fail are left alone, with the reason.

    One whose parts cannot lose equal shares may still lose any positions: what looked like a cut into parts
    that hang together may follow the widths by itself.
    """
    mapped = _map_proved(reference, groups, apart=True)
    kept = removable(reference, mapped)
    failed = [i for i, g in enumerate(kept) if mapped[i].prunable and not g.prunable and g.parts is not None]
    if failed:
        freed = _map_proved(reference, [replace(mapped[i], parts=None) for i in failed], apart=True)
        for i, group in zip(failed, removable(reference, freed), strict=True):
            kept[i] = group if group.prunable else kept[i]
    return kept


def _map_proved(reference: Reference, groups: Sequence[ChannelGroup], *, apart: bool) -> list[ChannelGroup]:
    reasons = map_faults(reference, groups, torch.Generator().manual_seed(0), apart=apart)
    return [g.left_alone(r) if r else g for g, r in zip(groups, reasons, strict=True)]


def _without_those_that_stay(
    model: nn.Module, groups: Sequence[ChannelGroup], ignored: set[str]
) -> list[ChannelGroup]:
    """The groups; left alone those that stay whatever the proofs say."""
    tied = shared_parameters(model)
    reasons = [g.reason or _ignored(g, ignored) or _shared(g, tied) for g in groups]
    return [g.left_alone(r) if r else g for g, r in zip(groups, reasons, strict=True)]


def _ignored(group: ChannelGroup, ignored: set[str]) -> str | None:
    for member in group.members:
        if member.side != "in" and any(f"{member.layer}.".startswith(f"{name}.") for name in ignored):
            return f"ignored by the user ({member.layer})"
    return None


def _shared(group: ChannelGroup, tied: Mapping[str, str]) -> str | None:
    for member in group.members:
        if member.layer in tied:
            return f"its layers share a parameter ({member.layer} and {tied[member.layer]})"
    return None
