"""compress(): the stages in their order, from a trained network to a checked, measured file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.checkpoints.builders import builder_of, input_shape_of, remember_builder
from mint_compress.checkpoints.loading import load_model
from mint_compress.data.specs import Data, load_data, synthetic_images
from mint_compress.errors import CheckFailed, MintError
from mint_compress.exporting.receipt import layer_counts
from mint_compress.exporting.shipping import check_target, ship, write_plan
from mint_compress.files import outputs
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.input_groups import inputs_read
from mint_compress.graph.label_tracing import MIXES
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.copying import bare_copy, copied
from mint_compress.nn.counting import layer_macs, parameters
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import (
    Inputs,
    InputShape,
    by_position,
    count,
    describe,
    is_single,
    run,
    split,
    to,
)
from mint_compress.planning.search import Budget
from mint_compress.planning.search import plan as choose_plan
from mint_compress.progress import Progress
from mint_compress.provenance import described, machine, versions
from mint_compress.repair.compensation import Repair, compensate_
from mint_compress.reporting import Report
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.scores import score, uses_samples
from mint_compress.settings import check_options
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.evaluation import accuracy, chance_warning
from mint_compress.training.finetuning import finetune

CALIBRATION_IMAGES = 1024
SAMPLES_PER_CLASS = 250
BATCH = 64
ACTIVATIONS = 4 * 2**30
"""Bytes that calibration may keep alive; larger networks get fewer images by default."""


@dataclass(frozen=True)
class _Settings:
    """The options that more than one stage looks at."""

    device: torch.device
    seed: int
    estimator: str
    samples_per_class: int | None
    progress: Progress | None


def compress(
    model: nn.Module | str | os.PathLike[str],
    data: Data | str | None = None,
    *,
    ratio: float | None = None,
    macs_ratio: float | None = None,
    output: str | os.PathLike[str] | None = None,
    plan: PruningPlan | str | os.PathLike[str] | None = None,
    arch: str | None = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    ignore: Sequence[str] = (),
    prune_inputs: Sequence[str] = (),
    estimator: str = "gaussian",
    calibration_images: int | None = None,
    samples_per_class: int | None = None,
    groups: int = 0,
    upper_limit: float = 0.95,
    round_to: int = 8,
    cost: str = "both",
    compensate: bool = True,
    distill: bool = True,
    augment: bool = True,
    epochs: int = 5,
    lr: float = 0.05,
    batch_size: int = 128,
    device: str = "auto",
    provider: str = "auto",
    threads: int = 1,
    bench_batch: int = 1,
    bench_seconds: float = 10.0,
    seed: int = 0,
    dry_run: bool = False,
    force: bool = False,
    trust: Sequence[str] = (),
    command: str | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """Make a smaller network: score, plan, remove, repair, fine-tune, export, check, measure.

    Parameters
    ----------
    model
        A module, which is copied, in float32 and without DataParallel or torch.compile around it, or the
        path of a checkpoint.
    data
        A data spec, :class:`Data`, or None: then synthetic images, no fine-tuning and no accuracy.
    ratio
        Share of the parameters that goes, 0 < ratio < 1.
    macs_ratio
        Share of the multiply-accumulate operations that goes, in the place of ``ratio`` or beside it: then
        at least both shares go.
    output
        Where to export to, for example ``small.onnx``; beside it a .safetensors and a .json are
        written. None: nothing is written, exported or timed.
    plan
        A plan, or the path of one, to apply instead of scoring; without ratios, it has its own.
    arch, input_shape, trust
        See :func:`load_model`; the shape is without the batch.
    mean, std
        Normalisation, per channel.
    ignore
        Patterns of layers whose output channels stay.
    prune_inputs
        Patterns of layers that may also leave out inputs by themselves, see :func:`find_groups`.
    estimator, calibration_images, samples_per_class
        How to score; the images feed the repair as well.
    groups, upper_limit, round_to, cost
        See :class:`Budget`; ``groups`` is its ``blocks``.
    compensate, distill, augment, epochs, lr, batch_size
        Repair and fine-tuning, with ``augment`` on images that are flipped and shifted where they are
        photographs.
    device, provider, threads, bench_batch, bench_seconds
        Where to compute, and how to time.
    seed
        Decides what is drawn at random; how data are split does not depend on it.
    dry_run
        Stop after the plan; with an ``output`` it is written to OUT.plan.json.
    force
        Replace files that exist.
    command
        The command line, for the record.
    progress
        Called as (stage, done, total).

    Returns
    -------
    module, report
        The compressed network on the CPU in eval mode, and what was found out about it.

    Raises
    ------
    MintError
        Bad input.
    CheckFailed
        A claim did not hold: counts, parity. No file is written then.
    """
    options: dict[str, Any] = {
        "ratio": ratio, "macs_ratio": macs_ratio, "input_shape": input_shape, "mean": mean, "std": std,
        "estimator": estimator, "calibration_images": calibration_images,
        "samples_per_class": samples_per_class, "groups": groups, "upper_limit": upper_limit,
        "round_to": round_to, "cost": cost, "epochs": epochs, "lr": lr, "batch_size": batch_size,
        "device": device, "provider": provider, "threads": threads, "bench_batch": bench_batch,
        "bench_seconds": bench_seconds, "seed": seed,
    }  # fmt: skip
    check_options(
        model=model, data=data, plan=plan, output=None if output is None else Path(output),
        dry_run=dry_run, force=force, **options,
    )  # fmt: skip
    target = None if output is None else outputs(Path(output))
    if target is not None:
        check_target(target, provider)
    where = resolve_device(device)
    tell = progress or (lambda *_: None)
    tell("read the model", 0, 1)
    original, notes = _open_model(model, arch, trust)
    tell("read the model", 1, 1)
    data, shape = _open_data(original, data, input_shape, mean, std, seed)
    # for a second pass: what it eats from now on
    remember_builder(original, builder_of(original), shape if is_single(shape) else None)
    notes += (data.description if data else f"no data: {describe(shape)} noise images, no accuracy",)
    example = _example(data, shape, seed)
    with by_position(original, example) as inputs:
        found = find_groups(original, inputs, ignore=ignore, prune_inputs=prune_inputs, progress=progress)
    settings = _Settings(where, seed, estimator, samples_per_class, progress)
    report = Report(
        model=str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__,
        seed=seed, command=command, versions=versions(), machine=machine(where), data=described(data),
        settings={
            **options, "arch": arch, "ignore": ignore, "prune_inputs": prune_inputs, "trust": trust,
            "compensate": compensate, "distill": distill, "augment": augment,
        },
    )  # fmt: skip
    original.to(where)
    example = to(example, where)
    images, drawn = _draw(original, data, example, settings, calibration_images, CALIBRATION_IMAGES)
    notes += drawn
    if plan is None:
        if groups and round_to > 1:
            notes += (f"--groups {groups} keeps blocks whole: widths are not rounded",)
        budget = Budget(
            ratio, macs=macs_ratio, upper_limit=upper_limit, round_to=round_to, cost=cost, blocks=groups  # type: ignore[arg-type]
        )  # fmt: skip
        plan, found, drawn = _plan(original, found, images, data, example, settings, budget)
        notes += (*drawn, *_little_computed(plan, cost))
        pruned = prune_(copied(original), plan)
    else:
        plan = _read_plan(plan)
        pruned = prune_(copied(original), plan)
        _check_plan(original, example, found, plan)
    notes += inputs_read(original, pruned, found)
    report = replace(report, **_counted(original, pruned, plan, found, example), notes=notes)
    if dry_run:
        return pruned.cpu().eval(), write_plan(report, plan, target)

    scores = {"original": _accuracy(original, data, settings), "pruned": _accuracy(pruned, data, settings)}
    held_out = {"original": _accuracy(original, data, settings, validation=True)}
    if data is not None and (warning := chance_warning(scores["original"] or 0.0, data.classes)):
        notes += (warning,)
    if compensate:
        repairs = compensate_(pruned, original, plan, split(images, BATCH), seed=seed, progress=progress)
        notes += _unrepaired(plan, repairs)
        scores["repaired"] = _accuracy(pruned, data, settings)
    if data is not None and epochs:
        source = data.augmented if augment else data.train
        if source is not data.train:
            notes += ("fine-tuning flips and shifts the images; --no-augment leaves them as they are",)
        finetune(
            pruned, source, teacher=original if distill else None, epochs=epochs, lr=lr,
            batch_size=batch_size, device=where, seed=seed, progress=progress,
        )  # fmt: skip
        scores["finetuned"] = _accuracy(pruned, data, settings)
    held_out["compressed"] = _accuracy(pruned, data, settings, validation=True)
    report = replace(report, accuracy=scores, validation=held_out, notes=notes)
    original, pruned = original.cpu().eval(), pruned.cpu().eval()
    if target is not None:
        report = ship(
            report, original, pruned, plan, to(images, "cpu"), target, provider=provider,
            threads=threads, batch=bench_batch, seconds=bench_seconds, progress=progress,
        )  # fmt: skip
    return pruned, report


def _little_computed(plan: PruningPlan, cost: str) -> tuple[str, ...]:
    """A line where the network gets smaller and hardly faster, as long as something can be done about it."""
    parameters, macs = (1 - after / before for before, after in (plan.parameters, plan.macs))
    if cost == "macs" or plan.asked_macs is not None or macs > parameters / 4:
        return ()
    return (
        f"{parameters:.0%} of the parameters go, but {macs:.1%} of the MACs: they are where little is "
        "computed. --macs-ratio asks for a share of those as well",
    )


def _unrepaired(plan: PruningPlan, repairs: Sequence[Repair]) -> tuple[str, ...]:
    """A line for the layers that lost inputs and could not be refitted."""
    missed = sorted({c.layer for c in plan.cuts if c.side == "in"} - {r.layer for r in repairs})
    reason = "sharing a weight, transposed, or not a plain convolution or linear layer"
    return (f"not repaired ({reason}): {', '.join(missed)}",) if missed else ()


def _open_model(
    model: nn.Module | str | os.PathLike[str], arch: str | None, trust: Sequence[str]
) -> tuple[nn.Module, tuple[str, ...]]:
    if isinstance(model, nn.Module):
        return bare_copy(model)
    loaded = load_model(model, arch=arch, trust=trust)
    return loaded.module, loaded.notes


def _open_data(
    model: nn.Module,
    data: Data | str | None,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
) -> tuple[Data | None, InputShape]:
    shape = input_shape if input_shape is not None else input_shape_of(model)
    if isinstance(data, str):
        data = load_data(data, mean=mean, std=std, input_shape=shape, seed=seed)
    if data is not None:
        return data, data.input_shape
    if shape is None:
        raise MintError("The size of the input is not known. Give --input-shape, for example 3,224,224.")
    return None, tuple(shape)


def _example(data: Data | None, shape: InputShape, seed: int) -> Inputs:
    """One sample to trace with; a real one where there are several inputs, whose types may matter."""
    if data is None or is_single(shape):
        return torch.zeros(1, *shape)
    return data.calibration(1, seed=seed)[0]


def _draw(
    model: nn.Module,
    data: Data | None,
    example: Inputs,
    settings: _Settings,
    asked: int | None,
    default: int,
) -> tuple[Inputs, tuple[str, ...]]:
    """Calibration images on the device: class-balanced from the training split, or synthetic."""
    if asked is None:
        wanted = min(default, max(8, ACTIVATIONS // _activation_bytes(model, example)))
    else:
        wanted = asked
    if data is None:
        assert isinstance(example, Tensor)
        images: Inputs = synthetic_images(wanted, example.shape[1:], seed=settings.seed)
    else:
        images, _ = data.calibration(wanted, seed=settings.seed)
        if asked is not None and count(images) < asked:
            raise MintError(
                f"{wanted} calibration images were asked for, but the training split has {count(images)}. "
                "Ask for fewer."
            )
    return to(images, settings.device), (f"calibration images: {count(images)}",)


def _activation_bytes(model: nn.Module, example: Inputs) -> int:
    """Roughly what one image keeps alive in two halted networks: three of the largest maps each."""
    largest = 1

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    handles = [m.register_forward_hook(see) for m in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return 2 * 3 * 4 * largest


def _plan(
    model: nn.Module,
    found: list[ChannelGroup],
    images: Inputs,
    data: Data | None,
    example: Inputs,
    settings: _Settings,
    budget: Budget,
) -> tuple[PruningPlan, list[ChannelGroup], tuple[str, ...]]:
    samples = uses_samples(settings.estimator)
    notes: tuple[str, ...] = ()
    if samples:
        each = settings.samples_per_class or SAMPLES_PER_CLASS
        wanted = each * (data.classes if data else 10)
        asked = None if settings.samples_per_class is None else wanted
        images, drawn = _draw(model, data, example, settings, asked, wanted)
        notes = tuple(f"for {settings.estimator}, {note}" for note in drawn)
    calibration = calibrate(
        model, found, split(images, BATCH), seed=settings.seed,
        moments=not samples, samples=samples, progress=settings.progress,
    )  # fmt: skip
    if alike := sorted(set(calibration.moments) - set(calibration.sensitivity)):
        notes += (f"without a backward pass, all outputs of these layers count alike: {', '.join(alike)}",)
    scores = score(
        found, calibration, estimator=settings.estimator, blocks=budget.blocks,
        seed=settings.seed, progress=settings.progress,
    )  # fmt: skip
    while True:
        plan = choose_plan(found, scores, budget)
        tried = after_trial(model, example, found, plan)
        if [g.prunable for g in tried] == [g.prunable for g in found]:
            return plan, found, notes
        found = tried


def _read_plan(plan: PruningPlan | str | os.PathLike[str]) -> PruningPlan:
    if isinstance(plan, PruningPlan):
        return plan
    return PruningPlan.from_json(Path(plan).read_text(errors="replace"))


def _check_plan(model: nn.Module, example: Inputs, found: Sequence[ChannelGroup], plan: PruningPlan) -> None:
    """Refuse a plan from elsewhere that takes what must stay, or does more than take channels out."""
    taken = {cut.group for cut in plan.groups if cut.removed}
    for group in found:
        if group.name in taken and not group.prunable:
            raise MintError(
                f"The plan takes channels of {group.name}, which must stay: {group.reason}. "
                "Write a new one with --dry-run."
            )
    for before, after in zip(found, after_trial(model, example, found, plan), strict=True):
        if after.reason != before.reason:
            raise MintError(f"The plan is wrong at {after.name}: {after.reason}. Write one with --dry-run.")


def _counted(
    original: nn.Module, pruned: nn.Module, plan: PruningPlan, found: Sequence[ChannelGroup], example: Inputs
) -> dict[str, Any]:
    """What the report says about sizes, counted from the two networks themselves."""
    before, after = parameters(original), parameters(pruned)
    macs = [sum(layer_macs(m, example).values()) for m in (original, pruned)]
    # layers that mix places compute less, too, when channels that only pass through them go
    fewer = macs[1] < plan.macs[1] and any(MIXES in (g.reason or "") for g in found)
    if plan.asked_macs is not None and macs[1] != plan.macs[1] and not fewer:
        # of the parameters prune_ has made sure
        raise CheckFailed(
            f"The network does {macs[1]:,} MACs; the plan, of MACs, predicted {plan.macs[1]:,}."
        )
    whole = {cut.group for cut in plan.groups if not cut.removed}
    spared = "kept whole: its channels score above the threshold"
    alone = [(g.name, g.reason or "") for g in found if not g.prunable]
    alone += [(g.name, spared) for g in found if g.prunable and g.name in whole]
    return {
        "ratio": {"asked": plan.asked, "removed": 1 - after / before},
        "parameters": {"before": before, "after": after},
        "macs": {"before": macs[0], "after": macs[1]},
        "macs_ratio": macs[0] / macs[1] if macs[1] else None,
        "layers": [
            {"pair": row.pair, "before": row.before, "after": row.after}
            for row in layer_counts(original, pruned, example)
        ],
        "left_alone": [{"group": name, "reason": reason} for name, reason in alone],
        "plan": plan.to_dict(),
    }


def _accuracy(
    model: nn.Module, data: Data | None, settings: _Settings, *, validation: bool = False
) -> float | None:
    if data is None:
        return None
    source = data.validation if validation else data.test
    return accuracy(model, source, device=settings.device, progress=settings.progress)
