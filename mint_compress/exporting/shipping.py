"""Write, check and time what was made; rename it into place only when every check held."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from mint_compress.checkpoints.builders import builder_of
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.exporting.benchmarking import BenchmarkResult, benchmark
from mint_compress.exporting.protocol import ExportResult, arrays, export, find_exporter
from mint_compress.exporting.receipt import verify
from mint_compress.files import Outputs, outputs, sha256_of
from mint_compress.nn.io import Inputs, count, select
from mint_compress.progress import Progress
from mint_compress.reporting import Report
from mint_compress.reporting.records import Latencies
from mint_compress.settings import Benchmark
from mint_compress.surgery.pruning_plan import PruningPlan

PARITY_IMAGES = 32


def ship(
    report: Report,
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    images: Inputs,
    target: Outputs,
    how: Benchmark,
    *,
    progress: Progress | None = None,
) -> Report:
    """Export, save, check, time, and put the files in their places: all of them, or none.

    Parameters
    ----------
    report
        What is known so far.
    original, pruned
        On the CPU, in eval mode.
    plan
        What was removed.
    images
        Real samples, batch first, for parity and timing.
    target
        Names of the files.
    how
        To run and time the exports.

    Returns
    -------
    Report
        With receipt, parity, latency and the hashes of the files.

    Raises
    ------
    CheckFailed
        A count or an output differs; nothing is written.
    """
    with _staging(target) as stage:
        save(pruned, stage.tensors, builder=builder_of(original), plan=plan.to_dict())
        before, after = _export_both(original, pruned, images, stage.export, _metadata(report), progress)
        receipt, parity = verify(
            original, pruned, after, select(images, slice(PARITY_IMAGES)), predicted=_predicted(pruned, plan),
            tensors_path=stage.tensors, device=how.provider, threads=how.threads, progress=progress,
        )  # fmt: skip
        times = _time_both(before, after, images, how, progress)
        idle = tuple(f"{name} never runs: the export does not hold it" for name in receipt.never_run)
        report = replace(
            report, receipt=receipt.counted, parity=parity,
            latency_ms=Latencies(times.original, times.pruned), speedup=times.speedup,
            provider=times.provider, notes=(*report.notes, *after.notes, *idle),
        )  # fmt: skip
        moves = {made: target.export.with_name(made.name) for made in after.files}
        return _put_in_place(report, {**moves, stage.tensors: target.tensors}, stage.report, target.report)


def _export_both(
    original: nn.Module,
    pruned: nn.Module,
    images: Inputs,
    path: Path,
    metadata: dict[str, str],
    progress: Progress | None,
) -> tuple[ExportResult, ExportResult]:
    """The pruned network at ``path``, and the original in a folder beside it: original first, then pruned."""
    tell = progress or (lambda *_: None)
    example = select(images, slice(2))
    tell("export", 0, 2)
    exported = export(pruned, example, path, metadata=metadata)
    tell("export", 1, 2)
    beside = path.parent / "original"  # a folder of its own, whatever the output is called
    beside.mkdir()
    reference = export(original, example, beside / path.name)
    tell("export", 2, 2)
    return reference, exported


def _predicted(pruned: nn.Module, plan: PruningPlan) -> dict[str, int]:
    """Parameters of each layer after, where the plan knows it as a module."""
    modules = {name for name, _ in pruned.named_modules()}
    return {name: after for name, (_, after) in plan.layers.items() if name in modules}


def _time_both(
    original: ExportResult, pruned: ExportResult, images: Inputs, how: Benchmark, progress: Progress | None
) -> BenchmarkResult:
    exporter = find_exporter(pruned.path)
    before, after = (
        exporter.open(result.path, device=how.provider, threads=how.threads) for result in (original, pruned)
    )
    batch = arrays(after, select(images, torch.arange(how.batch) % count(images)))
    return benchmark(before, after, batch, seconds=how.seconds, progress=progress)


def check_target(target: Outputs, provider: str) -> None:
    """Find out before anything is computed that files can be written there, and run on the provider.

    Raises
    ------
    MintError
        The folder cannot be written, there is no exporter for the suffix, or no such provider here.
    """
    exporter = find_exporter(target.export)
    with _staging(target) as stage:
        if provider == "cuda":  # asked for by name; it may be there and not load
            probe = export(nn.Linear(1, 1), torch.zeros(2, 1), stage.export)
            exporter.open(probe.path, device=provider)


def _metadata(report: Report) -> dict[str, str]:
    """What whoever runs the export must know: who made it, and how to normalise."""
    said = {"mint_compress": version("mint-compress")}
    if report.data:
        for name, values in (("mean", report.data.mean), ("std", report.data.std)):
            if values:
                said[name] = ",".join(f"{value:g}" for value in values)
    return said


def _put_in_place(report: Report, moves: Mapping[Path, Path], made: Path, final: Path) -> Report:
    """Hash and rename the files, the report last: where it is, everything it speaks of is."""
    hashes = {str(place): sha256_of(file) for file, place in moves.items()}
    if report.model and Path(report.model).is_file():
        hashes = {report.model: sha256_of(Path(report.model)), **hashes}
    report = replace(report, sha256=hashes)
    made.write_text(report.to_json() + "\n", encoding="utf-8")
    for file, place in {**moves, made: final}.items():
        os.replace(file, place)
    return report


def write_plan(report: Report, plan: PruningPlan, target: Outputs | None) -> Report:
    """Write ``OUT.plan.json``, if there is an output at all."""
    if target is None:
        return report
    with _staging(target) as stage:
        stage.plan.write_text(plan.to_json() + "\n", encoding="utf-8")
        digest = sha256_of(stage.plan)
        os.replace(stage.plan, target.plan)
    return replace(report, sha256={str(target.plan): digest})


@contextmanager
def _staging(target: Outputs) -> Iterator[Outputs]:
    """A hidden folder beside the output, gone at the end whatever happens."""
    try:
        folder = tempfile.mkdtemp(prefix=f".{target.export.name}.", dir=target.export.parent)
    except OSError as error:
        raise MintError(f"Cannot write to {target.export.parent}: {error.strerror or error}.") from None
    try:
        yield outputs(Path(folder) / target.export.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
