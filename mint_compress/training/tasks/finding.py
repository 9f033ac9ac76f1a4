"""Which task it is: the one that was named, or the one that outputs and targets speak for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mint_compress.data.targets import shapes_of
from mint_compress.errors import MintError, foreign
from mint_compress.importing import import_named
from mint_compress.nn.io import tensors_in
from mint_compress.settings import TASKS
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.detection import Detection
from mint_compress.training.tasks.embedding import Embedding
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.multilabel import Multilabel, is_zero_or_one
from mint_compress.training.tasks.own import Own, named
from mint_compress.training.tasks.protocol import Task
from mint_compress.training.tasks.regression import Regression, fits
from mint_compress.training.tasks.segmentation import Segmentation

KINDS: Mapping[str, type[Task]] = {
    kind.name: kind
    for kind in (Classification, Multilabel, Segmentation, Regression, Detection, Embedding, Imitation)
}
assert tuple(KINDS) == TASKS, "the option's choices are these"


def find_task(task: Any, *, loss: Any = None, metric: Any = None) -> Task | None:
    """The task that was asked for; None where nothing was.

    Parameters
    ----------
    task
        A name of :data:`mint_compress.settings.TASKS`, ``package.module:object``, a :class:`Task`, or None.
    loss, metric
        Callables, or ``package.module:callable``, that take the place of the task's; see :class:`Own`.
        Without a task they are put in the place of an imitation's.

    Raises
    ------
    MintError
        There is no such object, or it is something else.
    """
    found = _task(task)
    parts = [_callable(part, what) for part, what in ((loss, "the loss"), (metric, "the metric"))]
    if parts == [None, None]:
        return found
    return Own(found or Imitation(), *parts)


def _task(task: Any) -> Task | None:
    if task is None or isinstance(task, Task):
        return task
    if isinstance(task, str) and task in KINDS:
        return KINDS[task]()
    found = import_named(task, "the task") if isinstance(task, str) else task
    if isinstance(found, type):
        with foreign(f"Making the task {named(found)}"):
            found = found()
    if not isinstance(found, Task):
        raise MintError(
            f"The task {task!r} is a {type(found).__name__}. It must be {', '.join(KINDS)}, or an object or "
            "subclass of mint_compress.Task."
        )
    return found


def _callable(part: Any, what: str) -> Any:
    if part is None:
        return None
    found = import_named(part, what) if isinstance(part, str) else part
    if not callable(found):
        raise MintError(f"{what.capitalize()} {part!r} is a {type(found).__name__}. It must be callable.")
    return found


def default_task(outputs: Any, targets: Any) -> tuple[Task, str]:
    """The task that outputs and targets speak for, and why.

    Parameters
    ----------
    outputs
        What the network returned in eval mode for some samples.
    targets
        Those of these samples or of others, as the data give them.

    Returns
    -------
    task, reason
        The reason in a few words.

    Raises
    ------
    MintError
        Class numbers in a form that means something else: one-hot, or as floats.
    """
    if targets is None:
        return Imitation(), "the data have no labels, and the original's outputs stand in"
    found = [x for x in tensors_in(outputs) if x.is_floating_point()]
    kind = _of_tensor(found, targets) if isinstance(targets, Tensor) and found else None
    if kind is None and _boxes(outputs) and _boxes(targets):
        kind = Detection()
    if kind is not None:
        return kind, f"the targets are {_kind(targets)}"
    return Imitation(), (
        f"no built-in task takes targets that are {shapes_of(targets)} for outputs {_shapes(found)}; the "
        "original's outputs stand in, and --task or --loss and --metric say otherwise"
    )


def _of_tensor(outputs: list[Tensor], targets: Tensor) -> Task | None:
    """The task of tensors; None where none fits."""
    first, whole = outputs[0], not targets.is_floating_point()
    columns = first.shape[1] if first.ndim == 2 else 1
    if columns > 1 and targets.shape[1:] == first.shape[1:] and _one_hot(targets):
        raise MintError(
            f"The targets, {shapes_of(targets)}, are one-hot: every row has a single 1. Give class numbers, "
            "as labels.argmax(1) does, or --task multilabel where a sample may have several."
        )
    if columns > 1 and targets.ndim == 1 and not whole and bool((targets == targets.round()).all()):
        raise MintError(
            f"The targets, {shapes_of(targets)}, are whole numbers given as floats, for {columns} outputs. "
            "Save class numbers as int64, or name the task: --task."
        )
    if targets.ndim == 1 and whole and targets.dtype != torch.bool:
        return Embedding() if len(outputs) == 1 and _unit_length(first) else Classification()
    if targets.ndim == 3 and whole and targets.dtype != torch.bool and first.shape[1:] != targets.shape[1:]:
        return Segmentation()
    alike = [x for x in outputs if fits(x[:1], targets[:1])]
    if alike and is_zero_or_one(targets):
        if alike[0].ndim == 2 and alike[0].shape[1] == targets.shape[-1]:
            return Multilabel()
        if alike[0].ndim == 4 and alike[0].shape[1] == 1:
            return Segmentation()
    return Regression() if alike and targets.is_floating_point() else None


def _one_hot(targets: Tensor) -> bool:
    return is_zero_or_one(targets) and len(targets) > 1 and bool((targets.sum(1) == 1).all())


def _unit_length(output: Tensor) -> bool:
    if output.ndim != 2 or output.shape[1] < 2:
        return False
    length = output.double().norm(dim=1)
    return torch.allclose(length, torch.ones_like(length), atol=1e-3)


def _boxes(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(x, Mapping) and "boxes" in x for x in found)


def _kind(targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return "dicts of boxes, one an image"
    if targets.is_floating_point():
        return "floats" if not is_zero_or_one(targets) else "0 and 1"
    return {1: "whole numbers, one a sample", 3: "maps of whole numbers"}.get(targets.ndim, "0 and 1")


def _shapes(outputs: list[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in outputs) or "without a tensor of floats"
