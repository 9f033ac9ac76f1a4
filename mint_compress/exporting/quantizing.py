"""int8 beside float: both exports quantised, and all four measured on the same data and timed in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from mint_compress.data.datasets import Source
from mint_compress.errors import MintError
from mint_compress.exporting.protocol import ExportResult, NeedsPackages, arrays, find_exporter
from mint_compress.exporting.session import Session
from mint_compress.exporting.side_by_side import measured
from mint_compress.exporting.timing import time_in_turn
from mint_compress.files import size_of, writing
from mint_compress.nn.io import Inputs, count, select, split
from mint_compress.progress import Progress
from mint_compress.reporting.records import ExportFigures, Metric, SideBySide
from mint_compress.settings import Benchmark
from mint_compress.training.tasks.protocol import Task

IMAGES, AT_ONCE = 256, 32
"""Calibration images that the ranges of activations are taken from, and how many at a time."""
INT8_TOLERANCE = 0.05
"""Difference between two machines: a value at the edge of two integers may fall to either side."""
MUCH = 0.01
"""Loss of a metric in % that is told in a note of its own."""


class Quantizer(Protocol):
    """An exporter that can make an int8 file of one of its own."""

    def quantize(self, path: Path, output: Path, batches: Any) -> None:
        """Write ``output``; ``batches`` are tuples of arrays, in the order of the file's inputs."""


def find_quantizer(path: Path) -> Quantizer:
    """The exporter for ``path``, which must know int8.

    Raises
    ------
    MintError
        It does not, or what it needs for that is not installed.
    """
    exporter = find_exporter(path)
    if not callable(getattr(exporter, "quantize", None)):
        raise MintError(f"The exporter {exporter.name} does not write int8. Leave --int8 out.")
    if isinstance(exporter, NeedsPackages):
        exporter.require(int8=True)
    return cast("Quantizer", exporter)


@dataclass(frozen=True)
class Judged:
    """By what the files in fewer bits are judged.

    Attributes
    ----------
    images
        Real inputs (n, ...) on the CPU, of which the ranges of activations are taken.
    source, task
        The test data, and the metric.
    like
        What the network returns, for its structure.
    """

    images: Inputs
    source: Source
    task: Task
    like: Any


def quantized(
    original: ExportResult,
    pruned: ExportResult,
    output: Path,
    judged: Judged,
    how: Benchmark,
    progress: Progress | None = None,
) -> SideBySide:
    """Write ``output``, the int8 file of the pruned export, and hold it against the others.

    Raises
    ------
    MintError
        The runtime cannot quantise one of the files.
    """
    tell = progress or (lambda *_: None)
    beside = original.path.with_name(output.name)
    paths = {
        "float_original": original.path, "float_pruned": pruned.path,
        "int8_original": beside, "int8_pruned": output,
    }  # fmt: skip
    few = select(judged.images, slice(IMAGES))
    for done, (before, after) in enumerate(((original.path, beside), (pruned.path, output))):
        tell("int8", done, 2)
        session = _opened(before, how, threads=how.threads)
        given = (arrays(session, part) for part, _ in split(few, AT_ONCE))
        with writing(after):
            find_quantizer(before).quantize(before, after, given)
    tell("int8", 2, 2)
    return SideBySide(**figures(paths, judged, how, progress))


def figures(
    paths: Mapping[str, Path], judged: Judged, how: Benchmark, progress: Progress | None = None
) -> dict[str, ExportFigures]:
    """Measure exports on the same data and time them in turn; the others are held against the first."""
    found = measured(
        {name: _opened(path, how, threads=0) for name, path in paths.items()},
        judged.source, judged.task, judged.like, progress,
    )  # fmt: skip
    sessions = [_opened(path, how, threads=how.threads) for path in paths.values()]
    batch = arrays(sessions[0], select(judged.images, torch.arange(how.batch) % count(judged.images)))
    times = time_in_turn(sessions, batch, seconds=how.seconds, progress=progress)
    return {
        name: ExportFigures(size_of(path), *found[name], taken, times[0].median / taken.median)
        for (name, path), taken in zip(paths.items(), times, strict=True)
    }


def remarks(kind: str, before: ExportFigures, after: ExportFigures, metric: Metric) -> tuple[str, ...]:
    """What should be known before a file in fewer bits is shipped: that it loses much, or is no faster.

    Parameters
    ----------
    kind
        ``int8`` or ``fp16``.
    before, after
        The pruned network in float, and so.
    metric
        What its quality is measured in.
    """
    said = []
    if before.quality is not None and after.quality is not None:
        lost = before.quality - after.quality if metric.higher_is_better else after.quality - before.quality
        if not lost <= (MUCH if metric.unit == "%" else MUCH * abs(before.quality)):  # also where it is NaN
            change = metric.change(before.quality, after.quality)
            said.append(f"{kind} costs {metric.name}: {change} against the pruned network in float")
    faster = before.latency_ms.median / after.latency_ms.median
    if faster < 1:
        said.append(
            f"{kind} is slower than float on this machine, {faster:.2f}x: it may lack the instructions"
        )
    return tuple(said)


def _opened(path: Path, how: Benchmark, *, threads: int) -> Session:
    return find_exporter(path).open(path, device=how.provider, threads=threads)
