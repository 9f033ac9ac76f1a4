"""What a channel group is: the positions that go together, the layer sides they touch, what layers count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mint_compress.graph.costs import Network
from mint_compress.graph.written_sizes import WrittenSizes

Side = Literal["out", "in", "both"]
Indices = NDArray[np.int64]
UNREAD = "no layer reads it"
HEAD = "head: its channels are the network's outputs"
"""Why a group whose channels leave the network is left alone."""
UNREACHED = "not traced: the forward pass does not reach it"
"""Why a layer without members in any group is left alone."""


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer (or a bare parameter) whose channels belong to a group.

    Attributes
    ----------
    layer
        Qualified name of the module, or of the parameter when ``kind`` is ``"parameter"``.
    kind
        ``conv``, ``depthwise``, ``linear``, ``norm``, ``embedding`` or ``parameter``; ``recurrent``, whose
        inputs alone can go; ``selection``: the layer itself leaves out input channels that nothing before
        it stops making.
    side
        ``out``: the layer's output channels; ``in``: its input channels; ``both``: one channel is
        both (normalisation, depthwise convolution).
    channels, positions
        ``(m,)`` each: the layer's channel ``channels[i]`` is at the group's ``positions[i]``.
    channel_groups
        Channel groups of the layer on that side (grouped convolution, GroupNorm), else 1.
    dim
        The dimension that is cut, for a bare parameter.
    total
        All channels of the layer on that side.
    in_training
        Whether only training uses the layer, as an auxiliary head.
    """

    layer: str
    kind: str
    side: Side
    channels: Indices
    positions: Indices
    channel_groups: int = 1
    dim: int = 0
    total: int = 0
    in_training: bool = False


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only go together, along the dependency graph.

    Attributes
    ----------
    name
        Qualified name of the first producer; ``inputs of LAYER`` for features that have none.
    width
        Number of positions; a position is what is kept or removed at once.
    members
        Every layer side the positions touch.
    prunable, reason
        Whether positions may go, and if not, why not: the cause, then names and figures in brackets.
    network
        What every layer of the network counts; the same for all its groups.
    parts
        ``(width,)`` the part of each position, where the network cuts the channels into parts whose widths
        hang together, as halves do: all parts lose the same share. None: any positions may go.
    written
        The sizes among the modules' attributes that change with the channels; the same for all groups.
    """

    name: str
    width: int
    members: tuple[Member, ...] = field(repr=False)
    prunable: bool = True
    reason: str | None = None
    network: Network = field(repr=False, default_factory=lambda: Network({}))
    parts: Indices | None = field(repr=False, default=None)
    written: WrittenSizes = field(repr=False, default_factory=WrittenSizes)

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make these channels."""
        return tuple(
            m.layer for m in self.members if m.side == "out" and m.kind in ("conv", "linear", "embedding")
        )

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read these channels, with the map from their inputs to the positions.

        Without those that only training uses: they are cut with the others, but nothing can be
        learned from them about what the network gives.
        """
        return tuple(m for m in self.members if m.side == "in" and not m.in_training)

    @property
    def shares(self) -> list[tuple[Indices, int]]:
        """The positions of each part, and how many of them go at a time: those of all parts together."""
        parts = np.zeros(self.width, dtype=np.int64) if self.parts is None else self.parts
        own = [np.flatnonzero(parts == part) for part in range(int(parts.max(initial=0)) + 1)]
        times = math.gcd(*map(len, own))
        return [(positions, len(positions) // times) for positions in own]

    def left_alone(self, reason: str) -> ChannelGroup:
        """The same group, not prunable for ``reason``."""
        return replace(self, prunable=False, reason=reason)

    def checked(self) -> ChannelGroup:
        """The same group, not prunable where slicing cannot do it, whatever the permutation check says."""
        if not self.consumers:
            return self.left_alone(UNREAD)
        if self.width < 2:
            return self.left_alone("only one channel")
        for member in self.members:
            if member.channel_groups == 1:
                continue
            whole = np.array_equal(member.channels, np.arange(member.total))
            blocks = member.positions.reshape(member.channel_groups, -1) if whole else None
            # every channel group must lose the same positions, at the same offsets
            if blocks is None or (blocks != blocks[0]).any():
                return self.left_alone(
                    f"its channels cross the channel groups of a convolution ({member.layer})"
                )
        return self


def consumer_units(groups: Sequence[ChannelGroup]) -> dict[str, torch.Tensor]:
    """For every layer that reads prunable channels, the unit each input channel belongs to.

    Units number the positions of all prunable groups in turn (:func:`unit_offsets`); a channel
    that stays has -1.

    Returns
    -------
    dict
        Layer name -> ``(C_in,)`` int64.
    """
    offsets = unit_offsets(groups)
    units: dict[str, torch.Tensor] = {}
    for group in groups:
        for member in group.consumers if group.prunable else ():
            own = units.setdefault(member.layer, torch.full((member.total,), -1))
            own[torch.from_numpy(member.channels)] = torch.from_numpy(member.positions) + offsets[group.name]
    return units


def unit_offsets(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Group name -> unit number of its first position; prunable groups only."""
    offsets, total = {}, 0
    for group in groups:
        if group.prunable:
            offsets[group.name] = total
            total += group.width
    return offsets
