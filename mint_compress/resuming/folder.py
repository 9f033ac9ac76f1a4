"""The hidden folder beside an output: one run at a time works in it, and what a killed one left is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mint_compress.errors import MintError
from mint_compress.files import Outputs, hidden_folder, outputs, placing_mark, replacing, writing

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, STAGING, STATE = "lock", "staging", "state.json"
WAIT = 6.0
"""Seconds: processes that load data for a run notice within five that it was killed, and hold its lock."""


@dataclass(frozen=True)
class Folder:
    """Where a run works until its files are whole.

    Attributes
    ----------
    path
        Hidden, beside the output; its name is always the same, so that the next run finds it.
    target
        Names that the files of the run get in the end.
    stage
        The same names in a folder that is empty when a run begins.
    """

    path: Path
    target: Outputs
    stage: Outputs

    @property
    def state(self) -> Path:
        """The file that says what else in the folder belongs to it."""
        return self.path / STATE

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_bytes(content)

    def begin_placing(self) -> None:
        """Say that from now on files of the target's names are this run's, should it be killed."""
        with writing(placing_mark(self.path)):
            placing_mark(self.path).touch()

    def leave(self) -> None:
        """Remove what was about to be written, and all of the folder where no state is kept in it."""
        shutil.rmtree(self.stage.export.parent, ignore_errors=True)
        if not self.state.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def clear(self) -> None:
        """Remove what was kept; the state first, without which the rest is nothing."""
        self.state.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_file() and path.name != LOCK:
                path.unlink()


def folder_of(target: Outputs, *, dry_run: bool) -> Folder:
    """The folder of an output; a run that writes a plan alone has another than one that writes the export."""
    path = hidden_folder(target.plan if dry_run else target.export)
    return Folder(path, target, outputs(path / STAGING / target.export.name))


@contextmanager
def working_in(target: Outputs, *, dry_run: bool) -> Iterator[Folder]:
    """Have the hidden folder of an output to oneself; at the end nothing but a kept state is left of it.

    Raises
    ------
    MintError
        It cannot be written, or another run that lives works in it.
    """
    folder = folder_of(target, dry_run=dry_run)
    lock = _taken(folder.path, target)
    try:
        _remove_leftovers(folder.path)
        with _writable(target):
            folder.stage.export.parent.mkdir()
        yield folder
    finally:
        folder.leave()
        lock.release()
        if os.name == "nt":  # where a file that is open cannot be removed
            folder.leave()


def _taken(path: Path, target: Outputs) -> BaseFileLock:
    """The folder, made where there is none, and locked."""
    from filelock import FileLock, Timeout

    # the system gives it back however a process ends; the number of a process may be another's by then
    lock = FileLock(path / LOCK)
    try:
        with _writable(target):
            path.mkdir(exist_ok=True)
            lock.acquire(timeout=WAIT)
    except Timeout:
        raise MintError(
            f"Another run is writing {target.export}. Wait until it is done, or choose another name for -o."
        ) from None
    return lock


@contextmanager
def _writable(target: Outputs) -> Iterator[None]:
    try:
        yield
    except TimeoutError:  # filelock's, which says that another has it
        raise
    except OSError as error:
        raise MintError(f"Cannot write to {target.export.parent}: {error.strerror or error}.") from None


def _remove_leftovers(path: Path) -> None:
    """What a killed run was about to write."""
    shutil.rmtree(path / STAGING, ignore_errors=True)
    for half in path.glob(".*.tmp"):
        half.unlink(missing_ok=True)
