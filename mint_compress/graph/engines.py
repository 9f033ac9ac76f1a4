"""What finds channel groups: one interface for Torch-Pruning's graph and for labels of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.reference import Reference


@dataclass(frozen=True)
class Found:
    """The channel groups of a whole network, in the order in which their first producers are met."""

    groups: Sequence[ChannelGroup]


@dataclass(frozen=True)
class Refused:
    """No groups, and why not."""

    reason: str


class Engine(Protocol):
    """A way to the channel groups of a network."""

    @property
    def name(self) -> str:
        """What it is called in a log."""

    def groups(self, reference: Reference) -> Found | Refused:
        """All groups of a network; those that cannot be cut say why, and none of them is proved."""
