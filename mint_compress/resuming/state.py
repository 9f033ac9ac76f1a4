"""The results of a run's stages: kept as they come, and taken over from a run that was interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mint_compress import processes
from mint_compress.errors import MintError, shown
from mint_compress.files import Outputs, sha256_of
from mint_compress.resuming.folder import Folder, folder_of, working_in
from mint_compress.resuming.forms import Form, Result

log = logging.getLogger(__name__)

FORMAT = 1
FINETUNING = "fine-tuning.pt"
GOES_ON = "What was computed is kept: the same command with --resume goes on where it was."
ANEW = "Leave --resume out to begin anew."


@dataclass
class State:
    """What a run has come to so far.

    Attributes
    ----------
    facts
        What the results depend on, by name: settings, model, data, versions.
    seconds
        Stage -> how long it took.
    stages
        Stage -> its plain value, the notes that it gave, and the hash of the file with its tensors.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: MutableMapping[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


class Kept:
    """The state of one run, in the hidden folder beside its output; without one, nothing is kept.

    Parameters
    ----------
    folder
        None without an output.
    resume
        Whether what is there is to be gone on from.

    Attributes
    ----------
    writes
        Whether this process writes. Of several that share one training, the main one alone may.
    """

    def __init__(self, folder: Folder | None = None, *, resume: bool = False) -> None:
        self.folder = folder
        self.writes = folder is not None and processes.is_main()
        self._resume, self._begun = resume, False
        self._now = State()
        # of several processes, all take over what the main one has found
        self._earlier = processes.by_main(lambda: _read(folder)) if folder is not None and resume else None

    def hold(self, facts: Mapping[str, Any]) -> None:
        """Note what the results depend on; a run of which something else was noted is not gone on from.

        Raises
        ------
        MintError
            The first thing that differs, and both values.
        """
        for name, value in json.loads(_json(facts)).items():
            self._now.facts[name] = value
            was = value if self._earlier is None else self._earlier.facts.get(name)
            if was != value:
                raise MintError(
                    f"The interrupted run had {name} {_said(was)}, this one has {_said(value)}. "
                    f"Give what it had, or begin anew without --resume."
                )

    def begin(self, facts: Mapping[str, Any], seconds: MutableMapping[str, float]) -> None:
        """From now on results are kept; what an earlier run left is taken over, or removed.

        Parameters
        ----------
        facts
            Further ones to :meth:`hold`.
        seconds
            Of every stage so far; they go on to grow, and those of the earlier run are added.
        """
        if self.folder is None:
            return
        self.hold(facts)
        output = self.folder.target.export
        self._begun, self._now.seconds = True, seconds
        if self._earlier is not None:
            self._now.stages = dict(self._earlier.stages)
            for stage, spent in self._earlier.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
            log.warning("%s: goes on from what an interrupted run left", output)
            return
        if self._resume:
            log.warning("%s: no interrupted run to go on from, so this one begins at the beginning", output)
        elif self.folder.state.exists():
            log.warning("%s: what an interrupted run left is removed, as --resume was not given", output)
        if self.writes:
            self.folder.clear()

    def take(self, stage: str, form: Form[Result]) -> tuple[Result, Sequence[str]] | None:
        """What an interrupted run kept of a stage: its result, and its notes."""
        if self.folder is None or self._earlier is None or stage not in self._earlier.stages:
            return None
        kept = self._earlier.stages[stage]
        tensors = _tensors(self.folder.path / _file(stage)) if kept["sha256"] else {}
        return form.read(kept["value"], tensors), kept["notes"]

    def keep(self, stage: str, result: Result, form: Form[Result], notes: Sequence[str]) -> None:
        """Write what a stage has given."""
        if self.folder is None or not self.writes:
            return
        value, tensors = form.write(result)
        digest = None
        if tensors:
            content = _bytes(tensors)
            digest = hashlib.sha256(content).hexdigest()
            self.folder.write(_file(stage), content)
        self._now.stages[stage] = {"value": value, "notes": list(notes), "sha256": digest}
        self.folder.write(self.folder.state.name, _document(self._now))

    @property
    def finetuning(self) -> Path | None:
        """Where fine-tuning keeps its own state, epoch by epoch."""
        return None if self.folder is None else self.folder.path / FINETUNING

    def end(self, error: BaseException | None = None) -> None:
        """Remove what was kept; where an error ends the run, and something is worth keeping, say so in it."""
        if self.folder is None or not self._begun or not self.writes:
            return
        # a plan that cannot be made is not made from the same scores the next time either
        worth = self._now.stages if not isinstance(error, MintError) else self._now.stages.keys() - {"scores"}
        if error is not None and worth:
            error.add_note(GOES_ON)
        else:
            self.folder.clear()


@contextmanager
def kept_beside(target: Outputs | None, *, resume: bool, dry_run: bool) -> Iterator[Kept]:
    """What a run keeps until it ends; without an output, which is its ``target``, nothing.

    Raises
    ------
    MintError
        The folder cannot be written, another run is at work there, or what is to be gone on from is damaged.
    """
    if target is None:
        yield Kept()
        return
    with _shared(target, dry_run=dry_run) as folder:
        kept = Kept(folder, resume=resume)
        try:
            yield kept
        except BaseException as error:
            kept.end(error)
            raise
        kept.end()


@contextmanager
def _shared(target: Outputs, *, dry_run: bool) -> Iterator[Folder]:
    """The folder in every process; the main one alone locks it, and clears up."""
    if processes.is_main():
        with working_in(target, dry_run=dry_run) as folder:
            yield processes.by_main(lambda: folder)
        return
    folder = processes.by_main(lambda: folder_of(target, dry_run=dry_run))
    try:
        yield folder
    except BaseException:  # the main one may have been killed
        try:
            folder.leave()
        finally:  # torchrun ends a process whose partner is gone, perhaps while it clears away
            folder.leave()
        raise


def _file(stage: str) -> str:
    return f"{stage.replace(' ', '-')}.safetensors"


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # each by itself: safetensors refuses tensors that share memory
    return save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()})


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(path.read_bytes())


def _json(value: Any) -> str:
    # numbers of NumPy and PyTorch become Python's
    return json.dumps(value, default=lambda number: number.item())


def _document(state: State) -> bytes:
    content = _json(vars(state))
    return f'{{"format": {FORMAT}, "sha256": "{_digest(content)}", "state": {content}}}\n'.encode()


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _read(folder: Folder) -> State | None:
    """What an interrupted run left, every file of it as it was written; None where there is nothing."""
    if not folder.state.exists():
        return None
    try:
        document = json.loads(folder.state.read_bytes())
        found = document["format"]
        sound = found == FORMAT and document["sha256"] == _digest(_json(document["state"]))
        state = State(**document["state"]) if sound else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no JSON, or another
        found, state = FORMAT, None
    if found != FORMAT:
        raise MintError(f"{folder.state} has format {shown(found)}; this version reads {FORMAT}. {ANEW}")
    if state is None:
        raise MintError(f"{folder.state} is damaged. {ANEW}")
    for stage, kept in state.stages.items():
        path = folder.path / _file(stage)
        if kept["sha256"] and (not path.is_file() or sha256_of(path) != kept["sha256"]):
            raise MintError(f"{path} is {'damaged' if path.is_file() else 'missing'}. {ANEW}")
    return state


def _said(value: Any) -> str:
    """A value in a message."""
    return "none" if value is None else shown(value if isinstance(value, str) else json.dumps(value))
