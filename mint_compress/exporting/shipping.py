"""Try the export first; then write, check and time what was made, and rename it into place when all held."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress import processes
from mint_compress.checkpoints.builders import builder_of
from mint_compress.checkpoints.saving import save
from mint_compress.errors import CheckFailed, MintError
from mint_compress.exporting.benchmarking import BenchmarkResult, benchmark
from mint_compress.exporting.export_part import WHOLE, ExportPart
from mint_compress.exporting.fewer_bits import (
    Form,
    Judged,
    find_converter,
    forms,
    in_fewer_bits,
    remarks,
    why_left_out,
)
from mint_compress.exporting.parity import TOLERANCE, check_other_size
from mint_compress.exporting.protocol import ExportResult, arrays, export, find_exporter
from mint_compress.exporting.receipt import check_receipt, verify
from mint_compress.exporting.samples import COUNT as SAMPLES
from mint_compress.exporting.sampling import Sampler
from mint_compress.files import parts_of, sha256_of, writing
from mint_compress.nn.copying import copied
from mint_compress.nn.io import Inputs, count, select
from mint_compress.progress import Progress
from mint_compress.reporting import Report
from mint_compress.reporting.html import report_page
from mint_compress.reporting.records import Latencies
from mint_compress.resuming.folder import Folder
from mint_compress.settings import Benchmark, Budget, Export
from mint_compress.surgery.pruning_plan import PruningPlan

PARITY_IMAGES, LEAST_PARITY_IMAGES = 32, 7
PARITY_MACS = 2e11
"""Multiply-accumulate operations that comparing the export with the network may take in PyTorch."""
KEPT = 0.98
"""Two timings of one network differ by as much; what is closer to what was asked for keeps it."""


@dataclass(frozen=True)
class Shipment:
    """What is on its way to the files of one run.

    Attributes
    ----------
    original
        The export of the original, with which the pruned network's is compared.
    folder
        The hidden folder beside the output, and the names that the files get in the end.
    dynamic_size
        Whether images may have other heights and widths.
    part
        What of either network is exported.
    """

    original: ExportResult
    folder: Folder
    dynamic_size: bool = False
    part: ExportPart = WHOLE


@processes.done_by_main
def exported_first(
    original: nn.Module,
    images: Inputs,
    folder: Folder,
    *,
    dynamic_size: bool = False,
    part: ExportPart = WHOLE,
    progress: Progress | None = None,
) -> Shipment:
    """Export the original, so that a network that cannot be exported is refused before all else.

    Parameters
    ----------
    original
        On any device; it is copied, for tracing may leave something on a module.
    images
        Samples, batch first.
    folder
        To work in.
    dynamic_size
        As for :func:`mint_compress.exporting.protocol.export`; tried here with one other size.
    part
        What of the network is to be exported.

    Returns
    -------
    Shipment
        For :func:`ship`. Of processes that share the work, the main one exports.

    Raises
    ------
    MintError
        The original cannot be exported.
    """
    tell = progress or (lambda *_: None)
    beside = folder.stage.export.parent / "original"  # a folder of its own, whatever the output is called
    with writing(folder.target.export):
        beside.mkdir()
    tell("try the export", 0, 1)
    try:
        example = select(images, slice(2))
        network, path = part.of(copied(original)), beside / folder.stage.export.name
        made = export(network, example, path, dynamic_size=dynamic_size)
        if dynamic_size:
            check_other_size(network, find_exporter(path).open(path), example)
    except MintError as error:
        more = (
            "Nothing was computed yet. --export-part exports a part of it; without an output, compress() in "
            "Python needs no export."
        )
        raise _with_more(error, more) from error
    tell("try the export", 1, 1)
    return Shipment(made, folder, dynamic_size, part)


@processes.done_by_main
def ship(
    report: Report,
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    images: Inputs,
    shipment: Shipment,
    how: Benchmark,
    *,
    logits: int | None = None,
    wanted: Export = Export(),
    judged: Judged | None = None,
    budget: Budget = Budget(),
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Save, export, check, time, and put the files in their places: all of them, or none.

    Of processes that share the work the main one does, and all get the report.

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
    shipment
        Of :func:`exported_first`.
    how
        To run and time the exports.
    logits
        As for :func:`mint_compress.exporting.parity.check_parity`.
    wanted
        Whether the export is written in fewer bits as well ...
    judged
        ... and by what it is judged then.
    budget
        What was asked for; where that is speed, a network that is not faster is not written.
    force
        Write it nevertheless.

    Returns
    -------
    Report
        With receipt, parity, latency and the hashes of the files.

    Raises
    ------
    CheckFailed
        A count or an output differs; nothing is written.
    MintError
        The pruned network cannot be exported; the saved weights are kept, and nothing else.
    """
    stage, target = shipment.folder.stage, shipment.folder.target
    save(pruned, stage.tensors, builder=builder_of(original), plan=plan.to_dict())
    after = _export_or_keep(report, original, pruned, plan, images, shipment, progress)
    part, said = shipment.part.of(pruned), shipment.part.said(pruned)
    receipt, parity = verify(
        original, pruned, after, select(images, slice(_parity_images(report))),
        predicted=plan.left, tensors_path=stage.tensors, device=how.provider,
        threads=how.threads, logits=logits if shipment.part.is_whole else None, part=part, progress=progress,
    )  # fmt: skip
    sizes = _other_size(part, after, images, how) if shipment.dynamic_size else ()
    times = _time_both(shipment.original, after, images, how, progress)
    slow = check_speed(times, budget, force=force)
    idle = tuple(
        f"{name} has no effect on the outputs: the export does not hold it" for name in receipt.never_run
    )
    report = replace(
        report, receipt=receipt.counted, parity=parity,
        latency_ms=Latencies(times.original, times.pruned), speedup=times.speedup,
        provider=times.provider, notes=(*report.notes, *said, *after.notes, *sizes, *idle, *slow),
    )  # fmt: skip
    device = report.machine.device if report.machine else "unknown"
    sampler = Sampler(select(images, slice(SAMPLES)), how, receipt.counted.export or 0, device)
    moves = sampler.beside(after.files, times.pruned, TOLERANCE, target.export)
    more: dict[Path, Path] = {}
    if judged is not None:
        for form in forms(wanted):
            report, placed = _beside(form, report, after, shipment, sampler, judged, progress)
            more |= placed
    return _put_in_place(report, {**moves, **more, stage.tensors: target.tensors}, shipment.folder)


def _beside(
    form: Form,
    report: Report,
    after: ExportResult,
    shipment: Shipment,
    sampler: Sampler,
    judged: Judged,
    progress: Progress | None,
) -> tuple[Report, dict[Path, Path]]:
    """The export in fewer bits, made and measured: the report with that, and where its files are to go."""
    if why := why_left_out(form, after.path, report.provider or ""):
        return replace(report, notes=(*report.notes, why)), {}
    stage, target = (getattr(files, form.kind) for files in (shipment.folder.stage, shipment.folder.target))
    found = in_fewer_bits(form, shipment.original, after, stage, judged, sampler.how, progress)
    small = found[f"{form.kind}_pruned"]
    said = remarks(form.kind, found["float_pruned"], small, judged.task.metric)
    moves = sampler.beside(parts_of(stage), small.latency_ms, form.tolerance, target)
    kept: dict[str, Any] = {form.kind: form.record(**found)}
    return replace(report, **kept, notes=(*report.notes, *said)), moves


def check_speed(times: BenchmarkResult, budget: Budget, *, force: bool) -> tuple[str, ...]:
    """A line where the last measurement is behind what was asked for.

    Raises
    ------
    CheckFailed
        Speed was asked for, the pruned network is no faster than the original, and nothing is forced.
    """
    if not budget.timed:
        return ()
    before, after = times.original.median, times.pruned.median
    if after >= before and not force:
        raise CheckFailed(
            f"The pruned network takes {after:#.3g} ms and the original {before:#.3g}: it is not faster. "
            "Nothing is written; --force writes it nevertheless."
        )
    said = []
    if budget.speedup is not None and times.speedup < budget.speedup * KEPT:
        said.append(
            f"a speed-up of {budget.speedup:g}x was asked for; the last timing gave {times.speedup:.2f}x"
        )
    if budget.latency is not None and after > budget.latency / KEPT:
        said.append(f"{budget.latency:g} ms were asked for; the last timing gave {after:#.3g} ms")
    return tuple(f"{one}, as other programs on the machine may make it" for one in said)


def _parity_images(report: Report) -> int:
    """A large network says in few images whether it is the same: each gives many numbers to compare."""
    assert report.macs is not None
    return max(LEAST_PARITY_IMAGES, min(PARITY_IMAGES, int(PARITY_MACS / max(1, report.macs.after))))


def _export_or_keep(
    report: Report,
    original: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    images: Inputs,
    shipment: Shipment,
    progress: Progress | None,
) -> ExportResult:
    """Export the pruned network; where that fails, hours of training are kept as the saved weights."""
    tell = progress or (lambda *_: None)
    stage, kept = shipment.folder.stage, shipment.folder.target.tensors
    example = select(images, slice(2))
    tell("export", 0, 1)
    try:
        exported = export(
            shipment.part.of(pruned), example, stage.export, metadata=_metadata(report),
            dynamic_size=shipment.dynamic_size,
        )  # fmt: skip
    except MintError as error:
        check_receipt(  # what is kept is what was counted
            original, pruned, example_inputs=example, predicted=plan.left, tensors_path=stage.tensors
        )
        _move({stage.tensors: kept}, shipment.folder)
        more = f"The original was exported, the pruned network was not: its weights are kept in {kept}."
        raise _with_more(error, more) from error
    tell("export", 1, 1)
    return exported


def _with_more(error: MintError, more: str) -> MintError:
    """The same failure, with the same exit status and one more sentence."""
    kind = CheckFailed if isinstance(error, CheckFailed) else MintError
    return kind(f"{str(error).rstrip('.')}. {more}")


def _other_size(pruned: nn.Module, exported: ExportResult, images: Inputs, how: Benchmark) -> tuple[str, ...]:
    session = find_exporter(exported.path).open(exported.path, device=how.provider, threads=how.threads)
    height, width = check_other_size(pruned, session, images)
    return (f"the export takes images of other sizes: {height}x{width} was tried, and agrees with PyTorch",)


def _time_both(
    original: ExportResult, pruned: ExportResult, images: Inputs, how: Benchmark, progress: Progress | None
) -> BenchmarkResult:
    exporter = find_exporter(pruned.path)
    before, after = (
        exporter.open(result.path, device=how.provider, threads=how.threads) for result in (original, pruned)
    )
    batch = arrays(after, select(images, torch.arange(how.batch) % count(images)))
    return benchmark(before, after, batch, seconds=how.seconds, progress=progress)


def check_target(folder: Folder, provider: str, wanted: Export) -> None:
    """Find out before anything is computed that there is an exporter, and that it runs on the provider.

    Of int8 and fp16, where they are ``wanted``, that the exporter writes them.

    Raises
    ------
    MintError
        There is no exporter for the suffix, or no such provider here.
    """
    exporter = find_exporter(folder.target.export)
    for form in forms(wanted):
        find_converter(folder.target.export, form)
    if provider == "cuda" and processes.is_main():  # asked for by name; it may be there and not load
        probe = export(nn.Linear(1, 1), torch.zeros(2, 1), folder.stage.export)
        exporter.open(probe.path, device=provider)


def _metadata(report: Report) -> dict[str, str]:
    """What whoever runs the export must know: who made it, and how to normalise."""
    said = {"mint_compress": version("mint-compress")}
    if report.data:
        for name, values in (("mean", report.data.mean), ("std", report.data.std)):
            if values:
                said[name] = ",".join(f"{value:g}" for value in values)
    return said


def _put_in_place(report: Report, moves: Mapping[Path, Path], folder: Folder) -> Report:
    """Hash and rename the files, the report last: where it is, everything it speaks of is."""
    hashes = {str(place): sha256_of(file) for file, place in moves.items()}
    if report.model and Path(report.model).is_file():
        hashes = {report.model: sha256_of(Path(report.model)), **hashes}
    report = replace(report, sha256=hashes)
    made, final = folder.stage.report, folder.target.report
    with writing(final):
        made.write_text(report.to_json() + "\n", encoding="utf-8")
    page = folder.stage.page
    with writing(folder.target.page):
        page.write_text(report_page(report), encoding="utf-8")
    _move({**moves, page: folder.target.page, made: final}, folder)
    return report


def _move(moves: Mapping[Path, Path], folder: Folder) -> None:
    folder.begin_placing()
    for file, place in moves.items():
        with writing(place):
            os.replace(file, place)


@processes.done_by_main
def write_plan(report: Report, plan: PruningPlan, folder: Folder | None) -> Report:
    """Write ``OUT.plan.json``, if there is an output at all; of several processes, the main one does."""
    if folder is None:
        return report
    made, final = folder.stage.plan, folder.target.plan
    with writing(final):
        made.write_text(plan.to_json() + "\n", encoding="utf-8")
    digest = sha256_of(made)
    _move({made: final}, folder)
    return replace(report, sha256={str(final): digest})
