"""Many image files read a piece at a time, in their order, by the worker processes of a DataLoader."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mint_compress.data.image_files import UnreadableImage, read_pixels
from mint_compress.errors import MintError

MOST_WORKERS = 8
PIECE_BYTES = 4 * 2**20
"""Bytes of pixels that a worker reads and hands on at a time: small beside a batch, so that all workers have
something to do and little waits in shared memory, and large beside what a message costs."""
DEAD = re.compile(r"DataLoader worker \(pid|shared memory|No space left on device")
"""What PyTorch says of a worker that died, and of one that had no shared memory left to write to."""


def usual_workers() -> int:
    """A process for each core that this one may use, :data:`MOST_WORKERS` at most.

    0 where a process cannot simply be forked, as each would have to import the user's program, and where
    it may have no children.
    """
    if not _can_fork() or multiprocessing.current_process().daemon:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def _can_fork() -> bool:
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


class Piece(NamedTuple):
    """Some images, as they come from a worker.

    Attributes
    ----------
    pixels
        (n, C, H, W) uint8, of the files that could be read.
    unreadable
        Number in the piece, from 0 -> why there is no image, of the others.
    """

    pixels: Tensor
    unreadable: dict[int, str]


class ImageReader:
    """Image files by their numbers, and the processes that read them.

    The processes are started at the first reading that needs them, early in a run, when little memory is
    there to be shared with them, and serve all readings after that.

    Parameters
    ----------
    paths
        Of the files.
    shape
        (C, H, W) that every image gets.
    workers
        How many processes read; 0: this one. None: :func:`usual_workers`.
    """

    def __init__(self, paths: Iterable[str], shape: Sequence[int], workers: int | None = None) -> None:
        self.files = _Files(Paths(paths), tuple(shape))
        self.workers = usual_workers() if workers is None else workers
        self._order = _Order()
        self._loader: DataLoader[Tensor | str] | None = None
        self._busy = False

    @property
    def at_once(self) -> int:
        """Images in a piece, at most."""
        return max(1, PIECE_BYTES // math.prod(self.files.shape))

    def read(self, pieces: Iterable[Tensor]) -> Iterator[Piece]:
        """The images of each piece, which is numbers of files, in the order of the pieces.

        Raises
        ------
        MintError
            A worker died.
        """
        pieces = iter(pieces)
        first = list(islice(pieces, 2))
        # one piece is not worth the way, and the workers read in one order at a time
        if not self.workers or len(first) < 2 or self._busy:
            for piece in chain(first, pieces):
                yield _collated([self.files[number] for number in piece.tolist()])
            return
        self._busy = True
        try:
            yield from self._by_workers(chain(first, pieces))
        finally:
            self._busy = False

    def _by_workers(self, pieces: Iterable[Tensor]) -> Iterator[Piece]:
        self._order.pieces = pieces
        if self._loader is None:
            self._loader = DataLoader(
                self.files,
                batch_sampler=self._order,
                num_workers=self.workers,
                collate_fn=_collated,
                multiprocessing_context="fork" if _can_fork() else None,
                persistent_workers=True,
                # nothing is drawn at random here, and PyTorch's own generator must not move
                generator=torch.Generator(),
            )
        try:
            yield from self._loader
        # PyTorch's and the connection's; what goes on between two pieces does not come here
        except (RuntimeError, OSError, EOFError) as error:
            self._loader = None
            if isinstance(error, RuntimeError) and not DEAD.search(str(error)):
                raise
            said = " ".join((str(error) or type(error).__name__).split())[:100]
            raise MintError(
                f"A process that reads images died ({said}): mostly the machine's memory or shared memory is "
                f"full. Give --workers below {self.workers}, or 0 to read without further processes."
            ) from None


class Paths:
    """Names of files in one piece of memory.

    A list of strings would be copied into every worker bit by bit, as Python counts who refers to each.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        return os.fsdecode(self._text[self._ends[number] : self._ends[number + 1]])


class _Files(Dataset["Tensor | str"]):
    """The pixels of an image file, or why there are none."""

    def __init__(self, paths: Paths, shape: tuple[int, ...]) -> None:
        self.paths, self.shape = paths, shape

    def __getitem__(self, number: int) -> Tensor | str:
        try:
            return read_pixels(self.paths[number], self.shape)
        except UnreadableImage as error:
            return str(error)


class _Order:
    """The numbers of the files of each piece, which change from one reading to the next."""

    pieces: Iterable[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        for piece in self.pieces:
            yield piece.tolist()


def _collated(items: Sequence[Tensor | str]) -> Piece:
    pixels = [item for item in items if isinstance(item, Tensor)]
    unreadable = {i: item for i, item in enumerate(items) if isinstance(item, str)}
    return Piece(torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8), unreadable)
