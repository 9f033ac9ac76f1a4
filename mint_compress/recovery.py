"""What a pruned network gets back, stage by stage: repaired, healed, fine-tuned, and measured after each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from mint_compress.data.calibration_draw import first_inputs
from mint_compress.data.data import Data
from mint_compress.errors import ForeignError, first_line
from mint_compress.nn.io import Inputs, count
from mint_compress.repair.compensation import Repair, compensate_
from mint_compress.reporting import ACCURACY
from mint_compress.reporting.records import BeforeAfter, ClassChange, Stages
from mint_compress.resuming.forms import weights_of
from mint_compress.run import Run
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.evaluation import chance_warning
from mint_compress.training.finetuning import finetune_
from mint_compress.training.healing import heal_
from mint_compress.training.tasks.protocol import Measurement, Task

HELD_OUT = 256
"""Images of the validation split that say whether healing did good."""


def recovered(run: Run, pruned: nn.Module, plan: PruningPlan, images: Inputs) -> dict[str, Any]:
    """Repair, heal and fine-tune a pruned network in place, and measure it after each stage.

    Parameters
    ----------
    run
        With the original network.
    pruned
        On the run's device.
    plan
        What was removed.
    images
        Calibration images.

    Returns
    -------
    dict
        Fields of the report: ``quality``, ``validation``, ``details``, ``classes``; none without data.
    """
    original = run.measure("original", run.original)
    if run.data is None or run.task is None or original is None:
        _repair_(run, pruned, plan, images)
        return {}
    classes = run.data.classes
    if run.task.metric.name == ACCURACY and classes and (said := chance_warning(original.value, classes)):
        run.notes.append(said)
    found = {"original": original, "pruned": run.measure("pruned", pruned)}
    held_out = run.measure("original", run.original, validation=True)
    if _repair_(run, pruned, plan, images):
        found["repaired"] = run.measure("repaired", pruned)
    if _heal_(run, run.data, run.task, pruned, plan, images):
        found["healed"] = run.measure("healed", pruned)
    compressed = run.measure("healed", pruned, validation=True)
    if compressed and (tuned := _finetune_(run, run.data, run.task, pruned, compressed)):
        compressed, found["finetuned"] = tuned, run.measure("finetuned", pruned)
    return {
        "quality": Stages(**{stage: one.value for stage, one in found.items() if one is not None}),
        "validation": BeforeAfter(*(one.value if one else None for one in (held_out, compressed))),
        **_details(original, list(found.values())[-1]),
    }


def _repair_(run: Run, pruned: nn.Module, plan: PruningPlan, images: Inputs) -> bool:
    """Whether it was repaired."""
    if not run.settings.repair.compensate:
        return False

    def repair() -> bool:
        repairs = refitted_(run, pruned, plan, images)
        run.notes += (*unrepaired(plan, repairs), *repaired_from_few(repairs, count(images)))
        return True

    return run.once("repair", repair, weights_of(pruned))


def refitted_(run: Run, pruned: nn.Module, plan: PruningPlan, images: Inputs) -> list[Repair]:
    """Repair a pruned network in place, as the settings want it; the layers that were refitted."""
    if not run.settings.repair.compensate:
        return []
    # in one piece: how many go at once is a matter of the layer
    return compensate_(pruned, run.original, plan, [(images, None)], seed=run.seed, progress=run.progress)


def _heal_(run: Run, data: Data, task: Task, pruned: nn.Module, plan: PruningPlan, images: Inputs) -> bool:
    """Whether it was healed; a network that cannot be is left as it is, with a note."""
    settings = run.settings.healing
    if settings.heal_epochs == 0 or settings.heal_minutes == 0:
        return False

    def heal() -> bool:
        try:
            healing = heal_(
                pruned, run.original, plan, images, task=task,
                held_out=first_inputs(data.validation, HELD_OUT),
                epochs=settings.heal_epochs, minutes=settings.heal_minutes, device=run.device, seed=run.seed,
                augment=run.settings.finetuning.augment and data.augmented is not data.train,
                progress=run.progress,
            )  # fmt: skip
        except ForeignError as error:  # a forward pass without a backward one
            run.notes.append(f"not healed: {first_line(error)}")
            return False
        run.notes.append(str(healing))
        return healing.kept

    return run.once("healing", heal, weights_of(pruned))


def _finetune_(
    run: Run, data: Data, task: Task, pruned: nn.Module, before: Measurement
) -> Measurement | None:
    """Fine-tune; where the validation split, ``before`` until then, says that this did harm, undo it.

    Returns
    -------
    Measurement or None
        On the validation split; None where the network is as it was.
    """
    settings = run.settings.finetuning
    if not settings.epochs:
        return None
    source = data.augmented if settings.augment else data.train
    if source is not data.train:
        run.notes.append("fine-tuning flips and shifts the images; --no-augment leaves them as they are")
    weights = copy.deepcopy(pruned.state_dict())

    def finetune() -> bool:
        finetune_(
            pruned, source, task=task,
            teacher=run.original if settings.distill or task.trained_on_original else None,
            epochs=settings.epochs, lr=settings.lr, batch_size=settings.batch_size, device=run.device,
            seed=run.seed, checkpoint=run.kept.finetuning, progress=run.progress,
        )  # fmt: skip
        return True

    run.once("fine-tuning", finetune, weights_of(pruned))
    after = run.measure("finetuned", pruned, validation=True)
    if after is None or not task.metric.is_worse(after.value, before.value):
        return after
    pruned.load_state_dict(weights)
    was, became = (task.metric.shown(one.value) for one in (before, after))
    run.notes.append(
        f"fine-tuning was undone: on the validation split it led from {was} to {became}; a lower --lr or "
        "more --epochs may do better"
    )
    return None


def _details(original: Measurement, compressed: Measurement | None) -> dict[str, Any]:
    """Figures beside the metric, and what became of every class."""
    if compressed is None:
        return {}
    details = {
        name: BeforeAfter(value, compressed.details.get(name)) for name, value in original.details.items()
    }
    classes = tuple(
        ClassChange(number, *shares)
        for number, shares in enumerate(
            zip(original.classes, compressed.classes, original.support, strict=True)
        )
    )
    return {"details": details, "classes": classes}


def unrepaired(plan: PruningPlan, repairs: Sequence[Repair]) -> tuple[str, ...]:
    """A line for the layers that lost inputs and could not be refitted."""
    missed = sorted({c.layer for c in plan.cuts if c.side == "in"} - {r.layer for r in repairs})
    reason = "sharing a weight, or not a plain convolution or linear layer"
    return (f"not repaired ({reason}): {', '.join(missed)}",) if missed else ()


def repaired_from_few(repairs: Sequence[Repair], images: int) -> tuple[str, ...]:
    """A line where a layer was fitted to less than half of the images."""
    least = min((repair.images for repair in repairs), default=images)
    if 2 * least >= images:
        return ()
    return (
        f"some layers were repaired from {least} of the {images} calibration images: for more, activations "
        "on the way take too much memory",
    )
