"""compress(): the stages in their order, from a trained network to a checked, measured file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress import processes
from mint_compress.checkpoints.builders import builder_of, input_shape_of, remember_builder
from mint_compress.checkpoints.opening import open_model
from mint_compress.data.calibration_draw import one_sample
from mint_compress.data.data import Data
from mint_compress.data.specs import load_data
from mint_compress.errors import MintError
from mint_compress.exhaustion import exhaustion_told
from mint_compress.exporting.export_part import ExportPart, find_part
from mint_compress.exporting.fewer_bits import Judged, forms
from mint_compress.exporting.shipping import Shipment, check_target, exported_first, ship, write_plan
from mint_compress.exporting.sizes import sizes_of, unpredicted_products
from mint_compress.graph.finding import find_groups
from mint_compress.graph.input_groups import inputs_read
from mint_compress.graph.plan_check import check_plan
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.copying import copied
from mint_compress.nn.counting import module_macs
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import Inputs, InputShape, by_position, describe, is_single, select, tensors_in, to
from mint_compress.nn.io import run as run_network
from mint_compress.planning.planned import Planned
from mint_compress.preflight import check_run
from mint_compress.progress import Progress, StageClock
from mint_compress.provenance import asked_for, described, found_out, machine, named_settings, versions
from mint_compress.reaching.chosen import chosen_plan
from mint_compress.reaching.loss import check_drop
from mint_compress.recovery import recovered
from mint_compress.reporting import Report
from mint_compress.reporting.records import Disagreement
from mint_compress.resuming.forms import plan_of
from mint_compress.resuming.state import kept_beside
from mint_compress.run import Run
from mint_compress.settings import CALIBRATION_IMAGES, Settings
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.disagreement import disagreements
from mint_compress.training.first_look import check_classes, settle_task
from mint_compress.training.tasks.finding import find_task
from mint_compress.training.tasks.imitation import Imitation

LOOKED_AT, LEAST_LOOKED_AT, LOOKED_AT_MACS = 256, 16, 2e11
"""Test samples among which those are sought on which the networks differ, and what that may cost."""


@exhaustion_told()
@processes.sharing()
def compress(
    model: nn.Module | str | os.PathLike[str],
    data: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    plan: PruningPlan | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    settings: Settings | None = None,
    command: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Make a smaller network: score, plan, remove, repair, fine-tune, export, check, measure.

    Processes that torchrun or ``accelerate launch`` has started share the work, if all of them call this with
    the same arguments; the main one writes, and all get the result.

    Parameters
    ----------
    model
        A module, which is copied, in float32 and without DataParallel or torch.compile around it, or the
        path of a checkpoint.
    data
        A data spec, :class:`Data`, loaders of any kind (see :func:`load_data`), or None: then synthetic
        images, no training, and nothing to measure.
    output
        Where to export to, for example ``small.onnx``; beside it a .safetensors and a .json are
        written. None: nothing is written, exported or timed.
    plan
        A plan, or the path of one, to apply instead of scoring; without ratios, it has its own.
    dry_run
        Stop after the plan; with an ``output`` it is written to OUT.plan.json.
    force
        Replace files that exist.
    resume
        Go on where a run with this output and these settings was interrupted; where there is none, begin.
    settings
        All other options; by default those of :class:`mint_compress.settings.Settings`.
    command
        The command line, for the record.
    progress
        Called as (stage, done, total).
    options
        Options by name, ``ratio=0.75, estimator="gmi"``, in the place of or on top of ``settings``;
        :mod:`mint_compress.settings` lists them, as ``mint-compress --help`` does.

    Returns
    -------
    module, report
        The compressed network on the CPU in eval mode, and what was found out about it.

    Raises
    ------
    MintError
        Bad input, or a network that cannot be exported, which is tried before anything is computed. Where
        the pruned network alone cannot be exported, its .safetensors is kept.
    CheckFailed
        A claim did not hold: counts, parity. No file is written then.
    """
    settings = (settings or Settings()).replace(**options)
    target = check_run(
        model, data, settings, plan=plan, output=output, dry_run=dry_run, force=force, resume=resume
    )
    progress = clock = StageClock(progress if processes.is_main() else None)
    given = None if plan is None else _read(plan)
    with kept_beside(target, resume=resume, dry_run=dry_run) as kept:
        if kept.folder is not None:
            check_target(kept.folder, settings.benchmark.provider, settings.export)
            kept.hold(asked_for(model, data, given, settings))
        run = replace(_opened(model, data, settings, progress), kept=kept)
        kept.begin(found_out(run.data, run.device), clock.seconds)
        report = replace(_begun(run, model, command), seconds=clock.seconds)  # which grow until it is written
        images = run.draw(settings.scoring.calibration_images, CALIBRATION_IMAGES)
        shipment, timed = None, given is None and settings.budget.price == "latency"
        if kept.folder is not None and (timed or not dry_run):
            shipment = exported_first(
                run.original, images, kept.folder, dynamic_size=settings.export.dynamic_size,
                part=find_part(run.original, settings.export.export_part), progress=progress,
            )  # fmt: skip
        if dry_run:
            pruned, chosen, report = _pruned(run, report, images, given, shipment)
            report = replace(report, notes=run.told)
            return pruned.cpu().eval(), write_plan(report, chosen, kept.folder)
        pruned, chosen, report = _finished(run, report, images, given, shipment)
        if shipment is None:
            return pruned, report
        samples, how = to(images, "cpu"), settings.benchmark
        report = ship(
            report, run.original, pruned, chosen, samples, shipment, how,
            logits=run.task.logits if run.task else None, wanted=settings.export,
            judged=_judged(run, pruned, shipment.part, samples), budget=settings.budget, force=force,
            progress=progress,
        )  # fmt: skip
        return pruned, report


def _opened(
    model: nn.Module | str | os.PathLike[str],
    data: Any,
    settings: Settings,
    progress: Progress | None,
) -> Run:
    """The network and the data read, held against each other, and the channel groups found."""
    device = resolve_device(settings.compute.device)
    tell = progress or (lambda *_: None)
    tell("read the model", 0, 1)
    original, notes = open_model(model, settings.model)
    tell("read the model", 1, 1)
    data, shape = _open_data(original, data, settings)
    # for a second pass: what it takes from now on
    remember_builder(original, builder_of(original), shape if is_single(shape) else None)
    if processes.world() > 1:
        notes += (f"{processes.world()} processes share the work",)
    notes += (data.description if data else f"no data: {describe(shape)} noise images, nothing is measured",)
    example = one_sample(data, shape, seed=settings.compute.seed)
    job = settings.job
    task = find_task(job.task, loss=job.loss, metric=job.metric)
    if data is not None:
        task, said = settle_task(original, data.splits, task=task, device=device)
        notes += said
        if settings.finetuning.epochs:
            check_classes(task, data.train)
    layers = settings.layers
    with by_position(original, example) as inputs:
        groups = find_groups(
            original, inputs, ignore=layers.ignore, prune_inputs=layers.prune_inputs, progress=progress
        )
    original.to(device)
    return Run(settings, device, original, data, task, to(example, device), groups, progress, list(notes))


def _open_data(model: nn.Module, data: Any, settings: Settings) -> tuple[Data | None, InputShape]:
    shape = settings.model.input_shape or input_shape_of(model)
    if data is not None and not isinstance(data, Data):
        mean, std = settings.normalisation.mean, settings.normalisation.std
        seed, workers = settings.compute.seed, settings.compute.workers
        data = load_data(data, mean=mean, std=std, input_shape=shape, seed=seed, workers=workers)
    if data is not None:
        return data, data.input_shape
    if shape is None:
        raise MintError("The size of the input is not known. Give --input-shape, for example 3,224,224.")
    return None, tuple(shape)


def _begun(run: Run, model: nn.Module | str | os.PathLike[str], command: str | None) -> Report:
    """The report as far as it is known before anything is computed."""
    return Report(
        model=str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__,
        seed=run.seed, command=command, versions=versions(), machine=machine(run.device),
        settings=named_settings(run.settings), data=described(run.data),
        task=run.task.name if run.task else None, metric=run.task.metric if run.task else None,
    )  # fmt: skip


def _pruned(
    run: Run, report: Report, images: Inputs, given: PruningPlan | None, shipment: Shipment | None
) -> tuple[nn.Module, PruningPlan, Report]:
    """The network without what the plan takes, on the device; the plan; the report with sizes and plan."""
    planned = Planned(given, run.groups) if given is not None else _planned(run, images, shipment)
    chosen, run.groups = planned.plan, planned.groups
    pruned = prune_(copied(run.original), chosen)
    if given is not None:
        check_plan(run.original, run.example, run.groups, chosen)
    run.notes += (*inputs_read(run.original, pruned, run.groups), *unpredicted_products(run.groups))
    sizes = sizes_of(run.original, pruned, chosen, run.groups, run.example)
    report = replace(report, **vars(sizes), trials=planned.trials, layer_ms=planned.layer_ms)
    return pruned, chosen, replace(report, plan=chosen.to_dict())


def _planned(run: Run, images: Inputs, shipment: Shipment | None) -> Planned:
    return run.once("plan", lambda: chosen_plan(run, images, shipment), plan_of(run.groups))


def _finished(
    run: Run, report: Report, images: Inputs, given: PruningPlan | None, shipment: Shipment | None = None
) -> tuple[nn.Module, PruningPlan, Report]:
    """The network pruned, repaired and trained; it and the original are now on the CPU, in eval mode."""
    pruned, chosen, report = _pruned(run, report, images, given, shipment)
    report = replace(report, **recovered(run, pruned, chosen, images), notes=run.told)
    if run.task is not None:
        check_drop(run.task.metric, report.validation, run.settings.budget.max_drop)
    if shipment is not None:
        report = replace(report, disagreements=_disagreements(run, pruned))
    run.original.cpu().eval()
    return pruned.cpu().eval(), chosen, report


def _disagreements(run: Run, pruned: nn.Module) -> tuple[Disagreement, ...]:
    """Test samples on which the networks differ most; a large network is looked at on fewer."""
    if (data := run.data) is None or (task := run.task) is None:
        return ()
    macs = module_macs(run.original, run.example).total
    most = max(LEAST_LOOKED_AT, min(LOOKED_AT, int(LOOKED_AT_MACS / max(1, macs))))
    return processes.by_main(
        lambda: disagreements(run.original, pruned, data, task, device=run.device, look_at=most)
    )


def _judged(run: Run, pruned: nn.Module, part: ExportPart, samples: Inputs) -> Judged | None:
    """By what files in fewer bits are judged, where they are wanted; a part by what the original's says."""
    if not forms(run.settings.export) or run.data is None or run.task is None:
        return None
    with torch.no_grad(), evaluating(pruned), evaluating(run.original):
        before, after = (
            run_network(part.of(network), select(samples, slice(1))) for network in (run.original, pruned)
        )
    if part.is_whole:
        return Judged(samples, run.data.test, run.task, after)
    pairs = list(zip(tensors_in(before), tensors_in(after), strict=True))
    alike = [i for i, (a, b) in enumerate(pairs) if a.shape == b.shape]
    return Judged(samples, run.data.test, Imitation(), [pairs[i][1] for i in alike], alike)


def _read(plan: PruningPlan | str | os.PathLike[str]) -> PruningPlan:
    if isinstance(plan, PruningPlan):
        return plan
    return PruningPlan.from_json(Path(plan).read_text(errors="replace"))
