"""Exports of any runtimes beside each other: size and latency, measured in turn on one random input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import find_exporter
from mint_compress.exporting.session import Array, InputSpec, Session
from mint_compress.exporting.timing import time_in_turn
from mint_compress.files import size_of
from mint_compress.progress import Progress
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark


@dataclass(frozen=True)
class TimedExport:
    """One of the exports.

    Attributes
    ----------
    path, bytes
        The file, and its size with that of a file of weights beside it.
    provider
        What ran it.
    latency_ms
        Milliseconds per batch.
    speedup
        Median of the first export over its own.
    """

    path: str
    bytes: int
    provider: str
    latency_ms: Latency
    speedup: float


@dataclass(frozen=True)
class Comparison:
    """The exports in the order in which they were given."""

    exports: tuple[TimedExport, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [HEAD, *map(_row, self.exports)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(n) if i < NAMES else cell.rjust(n) for i, (cell, n) in enumerate(line))
            for line in (list(zip(row, widths, strict=True)) for row in rows)
        )


HEAD = ("export", "on", "MB", "median ms", "p90", "p99", "runs", "faster")
NAMES = 2
"""Columns that stand at the left."""


def _row(one: TimedExport) -> tuple[str, ...]:
    times = one.latency_ms
    p99 = "-" if times.p99 is None else f"{times.p99:#.4g}"
    return (
        one.path, one.provider, f"{one.bytes / 1e6:#.3g}", f"{times.median:#.4g}", f"{times.p90:#.4g}", p99,
        f"{times.runs:,}", f"{one.speedup:.2f}x",
    )  # fmt: skip


def compare_files(
    paths: Sequence[str | Path],
    how: Benchmark = Benchmark(),
    *,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Time exported files in turn, one run of each, on the same random inputs.

    Parameters
    ----------
    paths
        Files that installed exporters can open, of any runtimes; the first is what others are compared with.
    how
        Provider and threads of all, samples per run, and the time for all runs.
    input_shape
        Shape of the one input without the batch; needed where the first file leaves it open.
    seed
        Of the normally distributed inputs.
    progress
        Called as ("benchmark", tenths of seconds done, in all).

    Raises
    ------
    MintError
        A file that cannot be opened, inputs that differ, a shape left open, a device that did not load.
    """
    files = [Path(path) for path in paths]
    sessions = [find_exporter(p).open(p, device=how.provider, threads=how.threads) for p in files]
    shapes = [_shape(spec, how.batch, input_shape) for spec in sessions[0].inputs]
    for path, session in zip(files, sessions, strict=True):
        _check_alike((files[0], sessions[0]), (path, session), shapes)
    generator = np.random.default_rng(seed)
    inputs = tuple(
        _random(generator, spec.dtype, shape) for spec, shape in zip(sessions[0].inputs, shapes, strict=True)
    )
    times = time_in_turn(sessions, inputs, seconds=how.seconds, progress=progress)
    return Comparison(
        tuple(
            TimedExport(str(path), size_of(path), session.provider, taken, times[0].median / taken.median)
            for path, session, taken in zip(files, sessions, times, strict=True)
        )
    )


def _check_alike(
    first: tuple[Path, Session], other: tuple[Path, Session], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Whether the other takes what the first does; the names of inputs may differ."""
    specs, others = first[1].inputs, other[1].inputs
    if [spec.dtype for spec in specs] == [spec.dtype for spec in others] and all(
        _fits(spec, shape) for spec, shape in zip(others, shapes, strict=True)
    ):
        return
    raise MintError(
        f"'{first[0]}' takes {_describe(specs)}, '{other[0]}' takes {_describe(others)}: "
        "not comparable. Give files with the same inputs."
    )


def _fits(spec: InputSpec, shape: tuple[int | None, ...]) -> bool:
    return len(spec.shape) == len(shape) and all(
        size in (None, asked) for size, asked in zip(spec.shape, shape, strict=True)
    )


def _shape(spec: InputSpec, batch: int, input_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape to run: the file's own, with the batch and ``input_shape`` where it is open."""
    if not spec.shape:
        return ()
    if spec.shape[0] not in (None, batch):
        raise MintError(f"Input '{spec.name}' has a fixed batch of {spec.shape[0]}; {batch} was asked for.")
    sizes = spec.shape[1:] if input_shape is None else input_shape
    if not _fits(spec._replace(shape=spec.shape[1:]), sizes):
        raise MintError(f"Input shape {sizes} does not fit {_describe([spec])}.")
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        raise MintError(f"The file leaves the shape of {_describe([spec])} open. Give --input-shape.")
    return (batch, *known)


def _random(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    kind = np.dtype(dtype)
    if np.issubdtype(kind, np.floating):
        return generator.standard_normal(shape).astype(kind)
    return generator.integers(0, 2, shape).astype(kind)


def _describe(specs: Sequence[InputSpec]) -> str:
    return ", ".join(
        f"{spec.name} {spec.dtype}[{','.join('?' if s is None else str(s) for s in spec.shape)}]"
        for spec in specs
    )
