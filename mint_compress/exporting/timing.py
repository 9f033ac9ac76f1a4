"""How long runs of opened models take, measured in turn; nothing here needs PyTorch."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from mint_compress.exporting.session import Array, Session
from mint_compress.progress import Progress
from mint_compress.reporting.records import Latency

MIN_ROUNDS = 3
"""Rounds that are run whatever they take."""

RUNS_FOR_P99 = 100
"""With fewer runs the 99th percentile is hardly more than the slowest one."""

_SECONDS_BETWEEN_REPORTS = 0.25


def time_in_turn(
    sessions: Sequence[Session],
    inputs: tuple[Array, ...],
    *,
    seconds: float,
    warmup: int = 3,
    progress: Progress | None = None,
) -> list[Latency]:
    """Time sessions on the same inputs, one run of each in turn, for so many seconds in all."""
    for _ in range(warmup):
        for session in sessions:
            session.run(inputs)
    ticks = max(1, round(seconds * 10))
    times: list[list[int]] = [[] for _ in sessions]
    with no_garbage_collection():
        # a report between two runs may cool the caches, so the clock decides when, not the round
        start = reported = time.perf_counter()
        while (now := time.perf_counter()) < start + seconds or len(times[0]) < MIN_ROUNDS:
            if progress and now >= reported + _SECONDS_BETWEEN_REPORTS:
                progress("benchmark", min(round((now - start) * 10), ticks), ticks)
                reported = now
            for session, record in zip(sessions, times, strict=True):
                begin = time.perf_counter_ns()
                session.run(inputs)
                record.append(time.perf_counter_ns() - begin)
    if progress:
        progress("benchmark", ticks, ticks)
    return [latency([t / 1e6 for t in record]) for record in times]


def latency(milliseconds: Sequence[float]) -> Latency:
    """Median and percentiles (linear between the ranks) of single runs; p99 from `RUNS_FOR_P99` runs on."""
    median, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
    return Latency(median, p90, p99 if len(milliseconds) >= RUNS_FOR_P99 else None, len(milliseconds))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage, and then none while the block lasts; within such a block, nothing."""
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
