"""How well a network does its job, by the metric of its task."""

from __future__ import annotations

import itertools
from contextlib import ExitStack, suppress

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from mint_compress import processes
from mint_compress.data.batching import batch_count, batches
from mint_compress.data.datasets import Source
from mint_compress.data.targets import targets_to
from mint_compress.errors import MintError
from mint_compress.nn.batch_size import PASSING, samples_at_once
from mint_compress.nn.contexts import evaluating, placed
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import count, run, to
from mint_compress.nn.memory_format import fastest_layout, laid_out
from mint_compress.processes import Share
from mint_compress.progress import Progress
from mint_compress.training.original_outputs import OriginalOutputs
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.protocol import Measurement, Meter, SharedMeter, Task

BATCH_SIZE = {"cpu": 64, "cuda": 256}
"""Images at a time, at most: more of them do not fit into a CPU's cache."""


def evaluate(
    model: nn.Module,
    dataset: Source,
    task: Task,
    *,
    reference: nn.Module | None = None,
    kept: OriginalOutputs | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure ``model`` on ``dataset``.

    Processes that share the work go through a share each where the meter can add up what they find; for other
    meters the main one measures. All get the result.

    Parameters
    ----------
    model
        Run in eval mode without gradients; afterwards its mode and device are what they were.
    dataset
        Gives (image, target), or is a loader of (images, targets).
    task
        Whose metric it is.
    reference
        The original network, for a task that is measured on it; left as it was.
    kept
        What ``reference`` gave for this dataset when it was last measured on; filled by the first pass.
    device
        Where to compute: auto, cpu, cuda.
    batch_size
        Images of a dataset at a time; by default 64 on a CPU, else 256, or fewer where they are large.
    progress
        Called as (name of the metric, batches done, batches in all), 0 in all where that is not known.

    Raises
    ------
    MintError
        An empty dataset, targets that do not fit the outputs, or a reference that is missing.
    """
    where = resolve_device(device)
    if not task.measured_on_original:
        reference = None
    elif reference is None:
        raise MintError(f"The task {task.name} compares with the original network. Give it as reference.")
    if kept is None:
        kept = OriginalOutputs(most_bytes=-1)
    meter = task.meter()

    def measure(share: Share | None) -> bool:
        return _fed(meter, model, dataset, task, reference, kept, where, batch_size, share, progress)

    def result(seen: bool) -> Measurement:
        if not seen:
            raise MintError(f"The dataset to measure {task.metric.name} on is empty. Give more images.")
        return meter.compute()

    if not isinstance(meter, SharedMeter):
        return processes.by_main(lambda: result(measure(None)))
    seen = any(processes.gathered(measure(processes.share())))
    meter.add_up_()
    return result(seen)


def _fed(
    meter: Meter,
    model: nn.Module,
    dataset: Source,
    task: Task,
    reference: nn.Module | None,
    kept: OriginalOutputs,
    where: torch.device,
    batch_size: int | None,
    share: Share | None,
    progress: Progress | None,
) -> bool:
    """Run the network on a share of the dataset, for the meter; whether there was anything."""
    seen, total = False, 0
    networks = [model] if reference is None or reference is model else [model, reference]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network))
            stack.enter_context(placed(network, where))
        if batch_size is None:
            # the reference is the larger one, and the same for all networks that are measured on it
            batch_size = _affordable(networks[-1], dataset, where) * (share.world if share else 1)
        kept.begin(dataset, batch_size)
        if progress:
            with suppress(MintError):  # a stream without a length can be measured as well
                total = batch_count(dataset, batch_size)
        each = batches(dataset, batch_size, share=share)
        if (first := next(each, None)) is not None:
            layout = stack.enter_context(fastest_layout(networks, first[0]))
            each = itertools.chain([first], each)
        stack.enter_context(torch.inference_mode())
        for done, (inputs, targets) in enumerate(each):
            given = laid_out(to(inputs, where), layout)
            outputs = run(model, given)
            if reference is None:
                wanted = targets_to(targets, where)
            elif (wanted := kept.of(done, count(given))) is None:
                wanted = outputs if reference is model else run(reference, given)
                kept.add(count(given), wanted)
            meter.update(outputs, wanted)
            seen = True
            if progress:
                progress(task.metric.name, done + 1, total)
        kept.end()
    return seen


def _affordable(model: nn.Module, dataset: Source, device: torch.device) -> int:
    """Images at a time: a loader knows best."""
    most = BATCH_SIZE.get(device.type, BATCH_SIZE["cuda"])
    if isinstance(dataset, Dataset) and not isinstance(dataset, IterableDataset):
        for inputs, _ in batches(dataset, 1):
            return samples_at_once(model, to(inputs, device), most, PASSING)
    return most


def accuracy(
    model: nn.Module,
    dataset: Source,
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> float:
    """Share of the labels in ``dataset`` that ``model`` finds, in 0..1.

    Parameters
    ----------
    model
        Gives logits (n, classes), or (n, classes, H, W) for labels (n, H, W); of a dict or tuple the
        first tensor counts. One logit, (n, 1) or (n,), says by its sign whether the label is 1 or 0.
        Run in eval mode without gradients; afterwards its mode and device are what they were.
    dataset
        Gives (image, label), or is a loader of (images, labels). Pixels of label maps that are 255 or -100
        have no class and do not count.
    device, batch_size, progress
        As for :func:`evaluate`.

    Raises
    ------
    MintError
        An empty dataset, no logits, or labels that do not fit them: see
        :func:`mint_compress.training.targets.fitted`.
    """
    task = Classification()
    return evaluate(model, dataset, task, device=device, batch_size=batch_size, progress=progress).value


def chance_warning(accuracy: float, classes: int) -> str | None:
    """One line for an original that scores near chance, None for one that has learnt something.

    ``accuracy`` is a share in 0..1; near means less than a tenth of the way from chance to perfect.
    """
    chance = 1 / classes
    if accuracy >= chance + 0.1 * (1 - chance):
        return None
    return (
        f"The original scores {100 * accuracy:.2f} %, near the {100 * chance:.2f} % of chance with {classes} "
        "classes. Are mean and std, and the order of the labels, the ones it was trained with?"
    )
