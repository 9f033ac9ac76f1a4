"""Samples on which a compressed network differs from the original: what to look at before it is shipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.data.batching import batches
from mint_compress.data.data import Data
from mint_compress.data.datasets import are_classes
from mint_compress.data.thumbnails import thumbnail
from mint_compress.nn.contexts import evaluating
from mint_compress.nn.io import count, run, tensors_in, to
from mint_compress.reporting.records import Disagreement
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.protocol import Task

SHOWN = 8
AT_ONCE = 32


def disagreements(
    original: nn.Module,
    compressed: nn.Module,
    data: Data,
    task: Task,
    *,
    device: torch.device,
    look_at: int,
) -> tuple[Disagreement, ...]:
    """The samples of the test split on which both networks differ most.

    Of a classifier those count that get another class, the original's surest first; of other networks those
    whose outputs are furthest apart.

    Parameters
    ----------
    original, compressed
        On ``device``.
    data
        Whose first ``look_at`` test samples are looked at.
    task
        What the networks are for.

    Returns
    -------
    tuple
        At most :data:`SHOWN`, the worst first.
    """
    found: list[tuple[float, Disagreement]] = []
    seen = 0
    with evaluating(original), evaluating(compressed), torch.inference_mode():
        for inputs, targets in batches(data.test, min(AT_ONCE, look_at)):
            given = to(inputs, device)
            outputs = run(original, given), run(compressed, given)
            for row, (worth, said) in _apart(task, *outputs, targets, count(inputs)).items():
                one = inputs[row] if isinstance(inputs, Tensor) else None
                image = None if one is None else thumbnail(one, data.mean, data.std)
                found.append((worth, Disagreement(seen + row, said, image)))
            found = sorted(found, key=lambda one: -one[0])[:SHOWN]
            seen += count(inputs)
            if seen >= look_at:
                break
    return tuple(one for _, one in found)


def _apart(task: Task, theirs: Any, ours: Any, targets: Any, rows: int) -> dict[int, tuple[float, str]]:
    """Row -> how much it is worth looking at, and what is to be said of it."""
    classes = _classifier(task)
    if classes is None:
        return _far(theirs, ours, rows)
    before, after = classes.predicted(theirs), classes.predicted(ours)
    if before.ndim != 1:
        return _far(theirs, ours, rows)
    sure = classes.sureness(theirs)
    labels = targets if isinstance(targets, Tensor) and are_classes(targets) else None
    found = {}
    for row in (before != after).nonzero().flatten().tolist():
        label = "" if labels is None else f", labelled {int(labels[row])}"
        found[row] = float(sure[row]), f"class {int(before[row])} became {int(after[row])}{label}"
    return found


def _classifier(task: Task) -> Classification | None:
    """The classification that a task is, or is about."""
    for one in (task, getattr(task, "task", None), getattr(task, "of", None)):
        if isinstance(one, Classification):
            return one
    return None


def _far(theirs: Any, ours: Any, rows: int) -> dict[int, tuple[float, str]]:
    """Row -> the share that its outputs lack of what the original's vary by in this batch."""
    shares = [
        (a.float() - b.float()).square().reshape(rows, -1).mean(1)
        / a.float().var(correction=0).clamp_min(1e-12)
        for a, b in zip(tensors_in(theirs), tensors_in(ours), strict=False)
        if a.is_floating_point() and a.shape == b.shape and a.ndim and len(a) == rows
    ]
    if not shares:
        return {}
    mean = torch.stack(shares).mean(0).tolist()
    return {
        row: (share, f"{share:.1%} of the outputs' variance is lacking") for row, share in enumerate(mean)
    }
