"""The pruned network and the original, run on the same batches layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from mint_compress import processes
from mint_compress.allocator import trim_memory
from mint_compress.errors import MintError
from mint_compress.repair.synchronised_passes import Pass, synchronised_passes
from mint_compress.repair.tensor_location import TensorLocation

BATCH_SIZE = 64
"""Images in one forward pass."""
TRIMMED = 4
"""Passes that begin, or layers, after which memory is handed back: each time, what is taken anew costs."""


class PassPair(NamedTuple):
    """Two passes of one batch; at a layer, the first has paused before and the second after it."""

    pruned: Pass
    original: Pass


@dataclass(frozen=True, eq=False)
class NetworkPair:
    """Both networks, whose modules have the same names, and the batches that they are run on.

    Of processes that share the work, each runs every so manieth batch.
    """

    pruned: nn.Module
    original: nn.Module
    batches: Sequence[Any]

    @contextmanager
    def passes(
        self, layers: Collection[str], record: Mapping[str, TensorLocation]
    ) -> Iterator[list[PassPair | None]]:
        """A pair of passes a batch, which pause at the layers of these names; None: another process's batch.

        Parameters
        ----------
        layers
            Qualified names.
        record
            As for :func:`synchronised_passes`, in both networks.
        """
        with (
            self._passes(self.pruned, layers, record, after=False) as pruned,
            self._passes(self.original, layers, record, after=True) as original,
        ):
            pairs = map(PassPair, pruned, original)
            yield [next(pairs) if processes.is_mine(i) else None for i in range(len(self.batches))]

    def _passes(
        self,
        model: nn.Module,
        layers: Collection[str],
        record: Mapping[str, TensorLocation],
        *,
        after: bool,
    ) -> AbstractContextManager[list[Pass]]:
        modules = {name: model.get_submodule(name) for name in layers}
        mine = self.batches[processes.rank() :: processes.world()]
        return synchronised_passes(model, modules, mine, after=after, record=record)


def advance_to(name: str, pairs: Sequence[PassPair | None], pauses: int) -> None:
    """Let all passes go on, or begin, until they have paused so often, which must be at that layer.

    Raises
    ------
    MintError
        A pass has come to another one.
    """
    mine, begun = [pair for pair in pairs if pair is not None], 0
    for one in (*(p.pruned for p in mine), *(p.original for p in mine)):
        begun += one.paused_at is None
        while one.pauses < pauses:
            if one.paused_at is not None:  # one that begins late has nothing to show at earlier layers
                one.recorded.pop(one.paused_at, None)
            if one.advance() is None:
                break
        if begun == TRIMMED:  # the largest maps are those that they have made and let go of on their way
            trim_memory()
            begun = 0
        if one.paused_at != name:
            raise MintError(f"The forward pass calls its layers in changing order (at {name}).")
