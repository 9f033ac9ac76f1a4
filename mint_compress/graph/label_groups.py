"""The labels as an engine: channel groups from what the recorder of the passes has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mint_compress.graph.engines import Found, Refused
from mint_compress.graph.groups import HEAD, ChannelGroup, Indices, Member
from mint_compress.graph.label_meeting import GATE
from mint_compress.graph.label_tracing import Recording, Touch
from mint_compress.graph.reference import Reference


@dataclass(frozen=True)
class ChannelLabels:
    """Channels followed by labels.

    Parameters
    ----------
    recording
        Of passes over the network that is asked about; or why there is none.
    """

    recording: Recording | Refused
    name = "the labels"

    def groups(self, reference: Reference) -> Found | Refused:
        """The groups that the recording shows; its passes were those of ``reference``."""
        if isinstance(self.recording, Refused):
            return self.recording
        return Found([g.checked() if g.prunable else g for g in label_groups(self.recording)])


def label_groups(recording: Recording) -> list[ChannelGroup]:
    """The channel groups, in the order of their first producers' calls; none of them is proved.

    What one layer gives belongs to one group, and so does whatever has a unit of one of these channels.
    A position is a unit. What a call says is equally many belongs to one group as well, in parts.
    """
    units = [touch.units.numpy() for touch in recording.touches]
    made = [own for touch, own in zip(recording.touches, units, strict=True) if touch.side == "out"]
    ties = [pair for pair in recording.written.ties if not torch.equal(*pair)]
    group_of = _components([*made, *(torch.cat(pair).numpy() for pair in ties)])
    group_of = _without_gates(group_of, recording.held)
    position = _positions(made, group_of)
    reasons = _reasons(recording.held, group_of)
    members: dict[int, list[Member]] = {}
    for touch, own in zip(recording.touches, units, strict=True):
        in_training = touch.layer in recording.training_only
        for group, member in _members(touch, own, group_of, position, in_training=in_training):
            members.setdefault(group, []).append(member)
    by_group: dict[int, list[int]] = {}
    for unit, group in group_of.items():
        by_group.setdefault(group, []).append(unit)
    widths = {group: len(own) for group, own in by_group.items()}
    classes = _cut_alike([*recording.parts, *ties], max(group_of, default=0) + 1)
    found = []
    for group, sides in members.items():
        name = next(m.layer for m in sides if m.side == "out")
        unsliceable = (recording.unsliceable[m.layer] for m in sides if m.layer in recording.unsliceable)
        reason = reasons.get(group) or next(unsliceable, None)
        own = np.array([classes[unit] for unit in sorted(by_group[group], key=position.__getitem__)])
        found.append(
            ChannelGroup(
                name, widths[group], tuple(sides), reason is None, reason, parts=_parts(own),
                written=recording.written,
            )
        )  # fmt: skip
    order = {touch.layer: place for place, touch in enumerate(recording.touches)}
    return sorted(found, key=lambda g: order[g.name])


def _members(
    touch: Touch,
    units: Indices,
    group_of: Mapping[int, int],
    position: Mapping[int, int],
    *,
    in_training: bool,
) -> list[tuple[int, Member]]:
    """A member for every group that some of the channels on this side belong to, with that group."""
    groups = np.array([group_of.get(unit, -1) for unit in units.tolist()])
    found = []
    for group in np.unique(groups[groups >= 0]).tolist():
        channels = np.flatnonzero(groups == group)
        positions = np.array([position[unit] for unit in units[channels].tolist()], dtype=np.int64)
        sides = touch.layer, touch.kind, touch.side
        rest = touch.channel_groups, touch.dim, len(units)
        found.append((group, Member(*sides, channels, positions, *rest, in_training=in_training)))
    return found


def _cut_alike(cuts: Sequence[Sequence[Tensor]], units: int) -> Indices:
    """A number for every unit: the same for units that every cut puts into the same parts."""
    number = np.zeros(units, dtype=np.int64)
    for part in (part for cut in cuts for part in cut):
        inside = np.isin(np.arange(units), part.numpy())
        if inside.any() and not inside.all():
            number = np.unique(2 * number + inside, return_inverse=True)[1]
    return number


def _parts(classes: Indices) -> Indices | None:
    """The part of every position, counted in the order of the positions; None where shares are not whole."""
    _, first, part, sizes = np.unique(classes, return_index=True, return_inverse=True, return_counts=True)
    if len(sizes) == 1 or math.gcd(*sizes.tolist()) == 1:
        return None
    return np.argsort(np.argsort(first))[part]


def _reasons(held: Mapping[int, str], group_of: Mapping[int, int]) -> dict[int, str]:
    """Group -> why it stays; that it is a head says more than any other reason."""
    reasons: dict[int, str] = {}
    for head in (True, False):
        for unit, reason in held.items():
            if unit in group_of and (reason == HEAD) == head:
                reasons.setdefault(group_of[unit], reason)
    return reasons


def _components(made: Sequence[Indices]) -> dict[int, int]:
    """Unit -> group, named after one of its units."""
    leader: dict[int, int] = {}

    def find(unit: int) -> int:
        while leader.setdefault(unit, unit) != unit:
            unit = leader[unit]
        return unit

    for units in made:
        for unit in units.tolist():
            leader[find(unit)] = find(int(units[0]))
    return {unit: find(unit) for unit in leader}


def _without_gates(group_of: Mapping[int, int], held: Mapping[int, str]) -> dict[int, int]:
    """Without single channels that scale others, where those that the same layer makes may go."""
    gates = {unit for unit, reason in held.items() if reason == GATE}
    others = {group for unit, group in group_of.items() if unit not in gates}
    return {unit: group for unit, group in group_of.items() if unit not in gates or group not in others}


def _positions(made: Sequence[Indices], group_of: Mapping[int, int]) -> dict[int, int]:
    """Unit -> its position in its group, in the order of the producers' channels."""
    position: dict[int, int] = {}
    widths: dict[int, int] = {}
    for units in made:
        for unit in units.tolist():
            if unit in group_of and unit not in position:
                position[unit] = widths.get(group_of[unit], 0)
                widths[group_of[unit]] = position[unit] + 1
    return position
