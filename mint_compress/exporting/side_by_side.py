"""The exports of one run beside each other: float and int8, the original and the pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from mint_compress.data.batching import batch_count, batches
from mint_compress.data.datasets import Source
from mint_compress.errors import MintError
from mint_compress.exporting.protocol import arrays
from mint_compress.exporting.session import Array, Session
from mint_compress.nn.io import with_tensors
from mint_compress.progress import Progress
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.protocol import Task

BATCH_SIZE = 64


def measured(
    sessions: Mapping[str, Session],
    source: Source,
    task: Task,
    like: Any,
    progress: Progress | None = None,
    *,
    compared: Sequence[int] | None = None,
) -> dict[str, tuple[float, float | None]]:
    """Go through the data once with all exports.

    Parameters
    ----------
    sessions
        Name -> export; the first is the original's, which the others are compared with.
    source
        Images and targets.
    task
        Whose metric it is.
    like
        What the network returns, for its structure: a runtime gives a plain list of tensors.
    compared
        Which of these, by number, if not all: ``like`` has the others no more.
    progress
        Called as ("measure the exports", batches done, batches in all), 0 in all where that is not known.

    Returns
    -------
    dict
        Name -> the metric, and the agreement with the original (see
        :class:`mint_compress.training.tasks.imitation.Imitation`), None where outputs cannot be compared.
    """
    alike = task if isinstance(task, Imitation) else Imitation(task)
    total = 0
    with suppress(MintError):  # a stream without a length can be measured as well
        total = batch_count(source, BATCH_SIZE)
    meters = {name: (task.meter(), alike.meter()) for name in sessions}
    for done, (inputs, targets) in enumerate(batches(source, BATCH_SIZE), start=1):
        reference = None
        for name, session in sessions.items():
            given = session.run(arrays(session, inputs))
            outputs = _outputs(given if compared is None else [given[i] for i in compared], like)
            reference = outputs if reference is None else reference
            quality, agreement = meters[name]
            quality.update(outputs, reference if task.measured_on_original else targets)
            if task.distils:
                agreement.update(outputs, reference)
        if progress:
            progress("measure the exports", done, total)
    return {
        name: (quality.compute().value, agreement.compute().value if task.distils else None)
        for name, (quality, agreement) in meters.items()
    }


def _outputs(given: list[Array], like: Any) -> Any:
    return with_tensors(like, map(torch.from_numpy, given))
