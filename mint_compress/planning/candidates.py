"""What may go of one group, in which order, and what it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mint_compress.errors import MintError
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.choices import Mask
from mint_compress.planning.latency import NetworkTimes
from mint_compress.planning.prices import Price, Shares, shares_of
from mint_compress.scoring.blocks import block_of

Positions = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One prunable group's removal steps: a step is a block of positions that goes as a whole.

    Attributes
    ----------
    steps
        The blocks in the order in which they go, as many as the bounds allow; of a group in parts as many
        positions of each part as keep their shares equal.
    values
        Nats per position of each step, not decreasing.
    shares
        What one position costs.
    quantum
        Widths kept are multiples of this many positions.
    """

    group: ChannelGroup
    steps: tuple[Positions, ...]
    values: tuple[float, ...]
    shares: Shares
    quantum: int

    def densities(self, price: Price) -> list[float]:
        """Nats per cost of each step's positions."""
        cost = self.shares.at(price)
        return [value / cost for value in self.values]

    def mask(self, taken: int) -> Mask:
        """Positions that go when the first ``taken`` steps do, after rounding the width kept up."""
        gone = np.zeros(self.group.width, dtype=np.bool_)
        sizes = sum(len(s) for s in self.steps[:taken])
        keep = _round_up(self.group.width - sizes, self.quantum, self.group.width)
        if sizes == self.group.width - keep:
            for step in self.steps[:taken]:
                gone[step] = True
        else:
            gone[np.concatenate(self.steps[:taken])[: self.group.width - keep]] = True
        return gone

    def largest_mask(self) -> Mask:
        """All that may go."""
        return self.mask(len(self.steps))


def candidate(
    group: ChannelGroup,
    values: Values,
    *,
    upper_limit: float,
    round_to: int,
    blocks: int,
    times: NetworkTimes | None = None,
) -> Candidate:
    """The removal steps of a group, the least valuable first.

    Parameters
    ----------
    group
        A prunable group.
    values
        ``(width,)`` nats of each position, the same throughout a block.
    upper_limit, round_to, blocks
        See :class:`mint_compress.Budget`.
    times
        By which a position's share of the latency is known.

    Raises
    ------
    MintError
        Values that do not fit the group, or are not finite.
    """
    if values.shape != (group.width,) or not np.isfinite(values).all():
        raise MintError(
            f"Group {group.name} has {group.width} positions, but its scores have shape "
            f"{values.shape} or are not finite."
        )
    quantum = 1 if blocks else _quantum(group, round_to)
    if group.parts is not None:
        quantum = _quantum_of_shares(group, 1 if blocks else round_to)
    least = group.width - math.floor(upper_limit * group.width + 1e-9)
    least = max(1, _round_up(least, quantum, group.width))
    kept, staying = group.width, _staying(group, values)
    steps: list[Positions] = []
    worth: list[float] = []
    ranked = _ranked_blocks(values, blocks) if group.parts is None else _ranked_shares(group, values)
    for step in ranked:
        if staying.intersection(step.tolist()):
            continue
        kept -= len(step)
        if kept < least:
            break
        steps.append(step)
        worth.append(float(values[step[0]] if group.parts is None else values[step].sum()) / len(step))
    # prices are equal within a group, so the order of removal must not be undone by block sizes
    rising = np.maximum.accumulate(worth).tolist()
    return Candidate(group, tuple(steps), tuple(rising), shares_of(group, times), quantum)


def _ranked_blocks(values: Values, blocks: int) -> list[Positions]:
    """The positions of each block, the least valuable block first; of equal ones the first."""
    block = block_of(len(values), blocks).numpy()
    first = np.unique(block, return_index=True)[1]
    return [np.flatnonzero(block == b) for b in np.argsort(values[first], kind="stable")]


def _ranked_shares(group: ChannelGroup, values: Values) -> list[Positions]:
    """The least valuable positions of every part, then the next ones: by rank in each part, not by place."""
    ranked = [
        positions[np.argsort(values[positions], kind="stable")].reshape(-1, share)
        for positions, share in group.shares
    ]
    return [np.concatenate(step) for step in zip(*ranked, strict=True)]


def _quantum_of_shares(group: ChannelGroup, round_to: int) -> int:
    """Step of positions so that every part that is wider than ``round_to`` keeps a multiple of it."""
    shares = group.shares
    wide = [share for positions, share in shares if len(positions) > round_to]
    steps = math.lcm(*(round_to // math.gcd(round_to, share) for share in wide))
    return steps * sum(share for _, share in shares)


def _staying(group: ChannelGroup, values: Values) -> set[int]:
    """The best positions, one in each of the group's members: no layer may lose all channels of a side."""
    staying: set[int] = set()
    for positions in sorted(({*m.positions.tolist()} for m in group.members), key=len):
        if positions and not positions & staying:
            staying.add(max(positions, key=lambda p: (values[p], p)))
    return staying


def _round_up(width: int, quantum: int, most: int) -> int:
    return min(most, -(-width // quantum) * quantum)


def _quantum(group: ChannelGroup, round_to: int) -> int:
    """Step of positions so that layer widths kept are multiples of ``round_to`` where they are wider."""
    widest = max((len(m.channels) for m in group.members if m.side == "out"), default=group.width)
    if widest <= round_to:
        return 1
    fold = widest // group.width  # a position is a channel of each channel group
    return round_to // math.gcd(round_to, fold)
