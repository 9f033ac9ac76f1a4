"""What the original gives for a split, kept: networks are measured on it more than once."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, IterableDataset

from mint_compress.data.datasets import Source
from mint_compress.nn.io import tensors_in

MOST_BYTES = 2**28
"""Of the outputs for one split; of larger ones, as a segmenter's, none are kept."""


class OriginalOutputs:
    """The outputs of one network for one split, batch after batch.

    Of a loader none are kept, which may draw its samples anew, and none where they come to more than
    ``most_bytes``.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.whole = False
        self._batch_size = 0
        self._batches: list[tuple[int, Any]] = []
        self._left = 0

    def begin(self, source: Source, batch_size: int) -> None:
        """Before a pass: what an earlier one has kept holds for batches of the same size."""
        if self.whole and batch_size == self._batch_size:
            return
        in_order = isinstance(source, Dataset) and not isinstance(source, IterableDataset)
        self.whole, self._batch_size = False, batch_size
        self._batches, self._left = [], self.most_bytes if in_order else -1

    def of(self, batch: int, samples: int) -> Any | None:
        """What was kept of a batch, counted from 0; None unless a whole pass was."""
        if not self.whole or batch >= len(self._batches):
            return None
        kept, outputs = self._batches[batch]
        return outputs if kept == samples else None

    def add(self, samples: int, outputs: Any) -> None:
        """Keep the outputs for the next batch."""
        if self.whole or self._left < 0:
            return
        self._left -= sum(x.untyped_storage().nbytes() for x in tensors_in(outputs))
        if self._left < 0:
            self._batches.clear()
        else:
            self._batches.append((samples, outputs))

    def end(self) -> None:
        """After a pass that came to its end."""
        self.whole = self._left >= 0
