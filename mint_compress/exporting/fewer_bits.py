"""int8 and fp16 beside float: both exports written in fewer bits, and all four measured and timed in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from mint_compress.reporting.records import ExportFigures, HalfSideBySide, Metric, SideBySide
from mint_compress.settings import Benchmark, Export
from mint_compress.training.tasks.protocol import Task

IMAGES, AT_ONCE = 256, 32
"""Calibration images that the ranges of activations are taken from, and how many at a time."""
MUCH = 0.01
"""Loss of a metric in % that is told in a note of its own."""


class Quantizer(Protocol):
    """An exporter that can make an int8 file of one of its own."""

    def quantize(self, path: Path, output: Path, batches: Any) -> None:
        """Write ``output``; ``batches`` are tuples of arrays, in the order of the file's inputs."""


class Halver(Protocol):
    """An exporter that can make a file in half precision of one of its own."""

    @property
    def half_providers(self) -> tuple[str, ...]:
        """Providers that are faster in half precision; others compute in float what is stored in half."""

    def halve(self, path: Path, output: Path) -> None:
        """Write ``output``."""


@dataclass(frozen=True)
class Form:
    """Fewer bits than float.

    Attributes
    ----------
    kind
        As options, reports and files call it.
    method
        That an exporter has if it knows the form: of a :class:`Quantizer`, or a :class:`Halver`.
    record
        What the figures are kept in.
    tolerance
        Largest difference between two machines, as a share of the largest magnitude of an output.
    """

    kind: str
    method: str
    record: type[SideBySide] | type[HalfSideBySide]
    tolerance: float


INT8 = Form("int8", "quantize", SideBySide, 0.05)  # a value at the edge of two integers falls to either side
FP16 = Form("fp16", "halve", HalfSideBySide, 0.01)  # ten bits of the mantissa, and many layers


def forms(wanted: Export) -> tuple[Form, ...]:
    """Those that are asked for."""
    return tuple(form for form in (INT8, FP16) if getattr(wanted, form.kind))


def find_converter(path: Path, form: Form) -> Any:
    """The exporter for ``path``: a :class:`Quantizer` or :class:`Halver`, as the form wants.

    Raises
    ------
    MintError
        It does not know the form, or what it needs for that is not installed.
    """
    exporter = find_exporter(path)
    if not callable(getattr(exporter, form.method, None)):
        raise MintError(f"The exporter {exporter.name} does not write {form.kind}. Leave --{form.kind} out.")
    if isinstance(exporter, NeedsPackages):
        exporter.require(int8=form is INT8)
    return exporter


def why_left_out(form: Form, path: Path, provider: str) -> str | None:
    """Why a file in this form is of no use there; None where it is."""
    if form is not FP16 or provider in (wanted := find_converter(path, form).half_providers):
        return None
    return f"fp16 was left out: it is for {' or '.join(wanted)}, and the export runs on {provider} here"


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
    compared
        Which of its tensors, by number: of a part of a network some may be as wide as the plan has left them,
        which the original's are not. ``like`` is then a list of these alone. None: all.
    """

    images: Inputs
    source: Source
    task: Task
    like: Any
    compared: Sequence[int] | None = None


def in_fewer_bits(
    form: Form,
    original: ExportResult,
    pruned: ExportResult,
    output: Path,
    judged: Judged,
    how: Benchmark,
    progress: Progress | None = None,
) -> dict[str, ExportFigures]:
    """Write ``output``, the pruned export in fewer bits, and hold it against the others.

    Returns
    -------
    dict
        The fields of the form's record.

    Raises
    ------
    MintError
        The runtime cannot convert one of the files.
    """
    tell = progress or (lambda *_: None)
    beside = original.path.with_name(output.name)
    for done, (before, after) in enumerate(((original.path, beside), (pruned.path, output))):
        tell(form.kind, done, 2)
        with writing(after):
            _convert(form, before, after, judged.images, how)
    tell(form.kind, 2, 2)
    paths = {
        "float_original": original.path, "float_pruned": pruned.path,
        f"{form.kind}_original": beside, f"{form.kind}_pruned": output,
    }  # fmt: skip
    return _figures(paths, judged, how, progress)


def _convert(form: Form, before: Path, after: Path, images: Inputs, how: Benchmark) -> None:
    exporter = find_converter(before, form)
    if form is FP16:
        exporter.halve(before, after)
        return
    session = _opened(before, how, threads=how.threads)
    few = split(select(images, slice(IMAGES)), AT_ONCE)
    exporter.quantize(before, after, (arrays(session, part) for part, _ in few))


def _figures(
    paths: Mapping[str, Path], judged: Judged, how: Benchmark, progress: Progress | None = None
) -> dict[str, ExportFigures]:
    """Measure exports on the same data and time them in turn; the others are held against the first."""
    found = measured(
        {name: _opened(path, how, threads=0) for name, path in paths.items()},
        judged.source, judged.task, judged.like, progress, compared=judged.compared,
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
