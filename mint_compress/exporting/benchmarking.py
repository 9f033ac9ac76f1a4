"""Latency of two exported models, measured in turn so that both meet the same machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import find_exporter
from mint_compress.exporting.session import Array, InputSpec, Session
from mint_compress.exporting.timing import time_in_turn
from mint_compress.progress import Progress
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark


@dataclass(frozen=True)
class BenchmarkResult:
    """Both latencies, the ratio of their medians, and the provider both ran on."""

    original: Latency
    pruned: Latency
    speedup: float
    provider: str

    def __str__(self) -> str:
        head = f"{'ms':<9}{'median':>9} {'p90':>9} {'p99':>9} {'runs':>7}"
        rows = (_row("original", self.original), _row("pruned", self.pruned))
        return "\n".join((head, *rows, f"speed-up {self.speedup:.2f}x on {self.provider}"))


def _row(name: str, times: Latency) -> str:
    p99 = "-" if times.p99 is None else f"{times.p99:#.4g}"
    return f"{name:<9}{times.median:>#9.4g} {times.p90:>#9.4g} {p99:>9} {times.runs:>7}"


def benchmark(
    original: Session,
    pruned: Session,
    inputs: tuple[Array, ...],
    *,
    seconds: float = Benchmark.seconds,
    warmup: int = 3,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Time two sessions on the same inputs, one run of each in turn.

    Parameters
    ----------
    original, pruned
        Opened models, on the same provider.
    inputs
        One batch, for both.
    seconds
        Time for all the measured runs together; at least `MIN_ROUNDS` of each are made.
    warmup
        Runs of each before the clock starts.

    Returns
    -------
    BenchmarkResult
        Milliseconds per batch; ``speedup`` is the median of the original over that of the pruned.

    Raises
    ------
    MintError
        The sessions run on different providers, or do not accept the inputs.
    """
    if original.provider != pruned.provider:
        raise MintError(
            f"The original runs on {original.provider}, the pruned model on {pruned.provider}: "
            "not comparable. Ask for the CPU."
        )
    before, after = time_in_turn(
        (original, pruned), inputs, seconds=seconds, warmup=warmup, progress=progress
    )
    return BenchmarkResult(before, after, before.median / after.median, original.provider)


def benchmark_files(
    original: str | Path,
    pruned: str | Path,
    how: Benchmark = Benchmark(),
    *,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Time two exported files against each other on random inputs.

    Parameters
    ----------
    original, pruned
        Files that an installed exporter can open, with the same inputs.
    how
        Provider and threads of both sessions, samples per run, and the time for all runs.
    input_shape
        Shape of the one input without the batch; needed where the file leaves it open.
    seed
        Of the normally distributed inputs.

    Raises
    ------
    MintError
        A file that cannot be opened, inputs that differ, a shape left open, a device that did not load.
    """
    paths = (Path(original), Path(pruned))
    first, second = (find_exporter(p).open(p, device=how.provider, threads=how.threads) for p in paths)
    kinds = [[(spec.shape, spec.dtype) for spec in session.inputs] for session in (first, second)]
    if kinds[0] != kinds[1]:
        raise MintError(
            f"'{paths[0]}' takes {_describe(first.inputs)}, '{paths[1]}' takes {_describe(second.inputs)}: "
            "not comparable. Give two files with the same inputs."
        )
    generator = np.random.default_rng(seed)
    inputs = tuple(
        _random(generator, spec.dtype, _shape(spec, how.batch, input_shape)) for spec in first.inputs
    )
    return benchmark(first, second, inputs, seconds=how.seconds, progress=progress)


def _shape(spec: InputSpec, batch: int, input_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape to run: the file's own, with the batch and ``input_shape`` where it is open."""
    if not spec.shape:
        return ()
    if spec.shape[0] not in (None, batch):
        raise MintError(f"Input '{spec.name}' has a fixed batch of {spec.shape[0]}; {batch} was asked for.")
    sizes = spec.shape[1:] if input_shape is None else input_shape
    fits = len(sizes) == len(spec.shape) - 1 and all(
        size in (None, asked) for size, asked in zip(spec.shape[1:], sizes, strict=True)
    )
    if not fits:
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
