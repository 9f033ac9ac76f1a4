"""Latency of two exported models, measured in turn so that both meet the same machine."""

from __future__ import annotations

from dataclasses import dataclass

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array, Session
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
