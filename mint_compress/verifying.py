"""Whether an export is still what it was where it was made: with a runtime, and without PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from mint_compress.errors import CheckFailed, MintError, foreign
from mint_compress.exporting.differences import Differences
from mint_compress.exporting.samples import Samples
from mint_compress.exporting.session import Session
from mint_compress.exporting.timing import time_in_turn
from mint_compress.files import check_file, parts_of, samples_of, sha256_of
from mint_compress.progress import Progress
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark

RUNTIMES = "mint_compress.runtimes"
"""Entry points: a suffix without its dot -> what opens such a file, without PyTorch."""


@dataclass(frozen=True)
class Verification:
    """What was found; every check has held, or there would be an error.

    Attributes
    ----------
    export
        The file.
    parameters
        That were counted in it where it was made; the hash says that it is that file.
    samples, max_abs, max_rel
        How many were run, and how far outputs are from those kept: absolute, and as a share of the largest.
    latency_ms, provider
        Here.
    median_ms_then, machine_then
        And there.
    """

    export: str
    parameters: int
    samples: int
    max_abs: float
    max_rel: float
    latency_ms: Latency
    provider: str
    median_ms_then: float
    machine_then: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        now, then = self.latency_ms.median, self.median_ms_then
        return "\n".join(
            (
                f"Hash        as it was made: {self.export}, {self.parameters:,} parameters",
                f"Samples     {self.samples} give what they gave: differs by at most {self.max_abs:.1e} "
                f"({self.max_rel:.1e} relative)",
                f"Latency     median {now:#.4g} ms on {self.provider}; {then:#.4g} ms where it was made "
                f"({self.machine_then})",
            )
        )


def verify_export(
    path: str | Path,
    how: Benchmark = Benchmark(),
    *,
    max_latency: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check an export by the samples that ``compress`` has left beside it, and time it here.

    Parameters
    ----------
    path
        OUT.onnx; OUT.verify.npz lies beside it.
    how
        Provider, threads and seconds of the runs.
    max_latency
        Milliseconds that the median may take.
    progress
        Called as ("benchmark", tenths of seconds done, in all).

    Raises
    ------
    CheckFailed
        A hash, an output or the latency is not as it must be.
    MintError
        A file is missing or damaged, or no runtime for it is installed.
    """
    path = Path(path)
    check_file("export", path)
    kept = Samples.read(samples_of(path))
    parts = parts_of(path)  # which may be called otherwise by now
    for number, (name, wanted) in enumerate(kept.sha256.items()):
        file = parts[number] if number < len(parts) else path.with_name(name)
        check_file("export", file)
        if (found := sha256_of(file)) != wanted:
            raise CheckFailed(f"{file.name} is not the file that was made: SHA-256 {found}, not {wanted}.")
    session = _opened(path, how)
    _check_inputs(session, kept)
    max_abs, max_rel = _compared(session, kept, path)
    rows = np.arange(how.batch) % len(kept.inputs[0])
    (taken,) = time_in_turn(
        [session], tuple(x[rows] for x in kept.inputs), seconds=how.seconds, progress=progress
    )
    if max_latency is not None and not taken.median <= max_latency:
        raise CheckFailed(f"{path.name} takes {taken.median:#.4g} ms (median); {max_latency:g} are allowed.")
    return Verification(
        str(path), kept.parameters, len(kept.inputs[0]), max_abs, max_rel, taken, session.provider,
        kept.median_ms, f"{kept.machine}, threads {kept.threads}, batch {kept.batch}",
    )  # fmt: skip


def _opened(path: Path, how: Benchmark) -> Session:
    found = {point.name: point for point in entry_points(group=RUNTIMES)}
    point = found.get(path.suffix.removeprefix("."))
    if point is None:
        known = ", ".join(f".{name}" for name in sorted(found)) or "none"
        raise MintError(f"No runtime here opens '{path.name}'. Those that are installed open: {known}.")
    with foreign(f"The runtime {point.value}"):
        opened: Session = point.load()(path, device=how.provider, threads=how.threads)
    return opened


def _check_inputs(session: Session, kept: Samples) -> None:
    names = tuple(spec.name for spec in session.inputs)
    if names != kept.names:
        raise CheckFailed(f"The file takes {', '.join(names)}; the samples are {', '.join(kept.names)}.")


def _compared(session: Session, kept: Samples, path: Path) -> tuple[float, float]:
    got = session.run(kept.inputs)
    if (want := [x.shape for x in kept.outputs]) != (have := [x.shape for x in got]):
        raise CheckFailed(f"{path.name} gives outputs of shapes {have}; it gave {want}.")
    found = Differences()
    found.add(kept.outputs, got)
    if not found.relative <= kept.tolerance:  # also when it is not a number
        raise CheckFailed(
            f"{path.name} on {session.provider} differs from what it gave by {found.relative:.1e} of its "
            f"largest output; {kept.tolerance:.0e} is allowed."
        )
    return found.absolute, found.relative
