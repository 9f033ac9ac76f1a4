"""Groups of input features: what a layer may leave out of its inputs by itself, since no layer made it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from mint_compress.errors import MintError
from mint_compress.graph.groups import UNREACHED, ChannelGroup, Member
from mint_compress.graph.reference import Reference
from mint_compress.graph.removal_check import removable
from mint_compress.nn.counting import parameters, shared_parameters
from mint_compress.nn.input_selection import Selecting, can_select
from mint_compress.nn.layers import WEIGHTED, in_channels

MOST_FEATURES = 8192
"""Elimination holds a matrix of all pairs."""
LARGE, MANY = 0.5, 16
"""A layer with more than this share of all parameters, and so many inputs, may do with fewer of them."""


def input_groups(
    reference: Reference, groups: Sequence[ChannelGroup], patterns: Sequence[str]
) -> list[ChannelGroup]:
    """One group for every layer that a pattern names and that may select among its inputs.

    Parameters
    ----------
    reference
        From :func:`reference_run`; it is left as it was.
    groups
        The channel groups. What they remove, a layer need not leave out by itself.
    patterns
        fnmatch patterns of qualified layer names.

    Returns
    -------
    list of ChannelGroup
        Named ``inputs of LAYER``, in the order of the modules. They went through the trial removal of
        :func:`removable`, and those that failed say why.

    Raises
    ------
    MintError
        A pattern none of whose layers may select among its inputs.
    """
    if not patterns:
        return []
    reasons = unselectable(reference.model, groups)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in reasons if fnmatchcase(name, pattern)]
        if not matched:
            known = ", ".join(n for n, why in reasons.items() if why is None) or "none of this network"
            raise MintError(
                f"--prune-inputs {pattern!r} names no convolution or linear layer. Those that may drop "
                f"inputs by themselves: {known[:200]}."
            )
        free = [name for name in matched if reasons[name] is None]
        if not free:
            raise MintError(f"--prune-inputs {pattern!r} cannot be met: {reasons[matched[0]]}.")
        chosen |= set(free)
    found = [_group(n, in_channels(reference.model.get_submodule(n))) for n in reasons if n in chosen]
    return removable(reference, found)


def unselectable(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, str | None]:
    """Every convolution and linear layer -> why it may not select among its inputs; None where it may."""
    fed = {m.layer: g.name for g in groups if g.prunable for m in g.members if m.side == "in"}
    unreached = {g.name for g in groups if g.reason == UNREACHED}
    tied = shared_parameters(model)
    reasons: dict[str, str | None] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, WEIGHTED):
            continue
        reasons[name] = None
        if name in fed:
            reasons[name] = f"the inputs of {name} go with the channels of {fed[name]}"
        elif name in unreached:
            reasons[name] = f"the forward pass does not reach {name}"
        elif not can_select(layer):
            reasons[name] = f"{name}, a {type(layer).__name__}, is not a plain layer without channel groups"
        elif name in tied:
            reasons[name] = f"{name} shares a parameter with {tied[name]}"
        elif not 1 < in_channels(layer) <= MOST_FEATURES:
            reasons[name] = f"{name} has {in_channels(layer):,} inputs, not 2 to {MOST_FEATURES:,}"
    return reasons


def inputs_read(original: nn.Module, pruned: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
    """A line for each layer that leaves inputs out, and for one that is most of the network and does not."""
    notes, total = [], parameters(pruned)
    whole = "the parameters" if pruned is original else "the parameters left"
    for name, why in unselectable(original, groups).items():
        layer = pruned.get_submodule(name)
        given, own = in_channels(original.get_submodule(name)), parameters(layer)
        if isinstance(layer, Selecting):
            reads = f"{name} reads {in_channels(layer):,} of {given:,} inputs"
            notes.append(f"{reads}, which a Gather selects in the export")
        elif why is None and own > LARGE * total and given >= MANY:
            holds = f"{name} holds {own / total:.0%} of {whole} and reads all {given:,} inputs"
            notes.append(f"{holds}; --prune-inputs {name} lets it drop some")
    return tuple(notes)


def _group(layer: str, width: int) -> ChannelGroup:
    channels = np.arange(width)
    member = Member(layer, "selection", "in", channels, channels, total=width)
    return ChannelGroup(f"inputs of {layer}", width, (member,))
