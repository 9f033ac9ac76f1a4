"""A choice of positions, one mask per group: what it leaves of each layer, and the plan that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mint_compress.graph.costs import LayerShape, Network
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.written_sizes import Gone, sizes_after
from mint_compress.surgery.pruning_plan import GroupCut, LayerCut, PruningPlan

Mask = NDArray[np.bool_]
"""``(width,)`` of a group: True for the positions that go."""


def removed_channels(groups: Sequence[ChannelGroup], masks: Sequence[Mask]) -> dict[str, tuple[int, int]]:
    """Layer -> (input channels, output channels) that go."""
    removed: dict[str, tuple[int, int]] = {}
    for group, mask in zip(groups, masks, strict=True):
        for member in group.members:
            count = int(mask[member.positions].sum())
            inside, outside = removed.get(member.layer, (0, 0))
            if member.side == "in":
                inside += count
            else:
                outside += count
            removed[member.layer] = (inside, outside)
    return removed


def counts_left(network: Network, groups: Sequence[ChannelGroup], masks: Sequence[Mask]) -> tuple[int, int]:
    """Parameters and MACs that are left."""
    parameters, macs = network.parameters, network.macs
    removed = {group.name: mask for group, mask in zip(groups, masks, strict=True)}
    macs += network.product_macs(removed) - network.product_macs({})
    for name, (inside, outside) in removed_channels(groups, masks).items():
        layer = network.layers.get(name, LayerShape())  # a normalisation without parameters
        after = layer.after(inside, outside)
        parameters += after[0] - layer.parameters
        macs += after[1] - layer.macs
    return parameters, macs


def make_plan(
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Mask],
    *,
    asked: float | None,
    asked_macs: float | None = None,
) -> PruningPlan:
    """Write out a choice of positions, group name -> ``(width,)`` mask of what goes, as a plan.

    Parameters
    ----------
    groups
        All groups of the network; those without a mask stay whole.
    asked, asked_macs
        The shares of parameters and MACs that were asked for, for the record.
    """
    network = groups[0].network
    chosen = [(g, np.asarray(removed[g.name], dtype=np.bool_)) for g in groups if g.name in removed]
    counts = removed_channels([g for g, _ in chosen], [m for _, m in chosen])
    after = {n: s.after(*counts.get(n, (0, 0))) for n, s in network.layers.items()}
    parameters = sum(a for a, _ in after.values())
    cuts = _layer_cuts(chosen)
    return PruningPlan(
        asked,
        (network.parameters - parameters) / network.parameters,
        (network.parameters, parameters),
        (
            network.macs,
            sum(m for _, m in after.values()) + network.product_macs({g.name: m for g, m in chosen}),
        ),
        tuple(
            GroupCut(g.name, tuple(np.flatnonzero(~m).tolist()), tuple(np.flatnonzero(m).tolist()))
            for g, m in chosen
        ),
        cuts,
        {n: (s.parameters, after[n][0]) for n, s in network.layers.items()},
        asked_macs,
        sizes_after([(g.written, _gone(g, m)) for g, m in chosen]),
    )


def _gone(group: ChannelGroup, mask: Mask) -> Gone:
    cuts = _layer_cuts([(group, mask)])
    return {(c.layer, c.kind, c.side, c.dim): c.removed for c in cuts}


def _layer_cuts(chosen: Sequence[tuple[ChannelGroup, Mask]]) -> tuple[LayerCut, ...]:
    """One cut for each side of a layer that loses channels, whichever groups they belong to."""
    cuts: dict[tuple[str, str], LayerCut] = {}
    for group, mask in chosen:
        for member in group.members:
            gone = member.channels[mask[member.positions]].tolist()
            key = (member.layer, member.side)
            before = cuts[key].removed if key in cuts else ()
            cuts[key] = LayerCut(
                member.layer,
                member.kind,
                member.side,
                member.dim,
                member.total,
                tuple(sorted({*before, *gone})),
            )
    return tuple(c for c in cuts.values() if c.removed)
