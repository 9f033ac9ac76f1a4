"""Share of the images that a network gets right."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from mint_compress.data.datasets import Source, batch_count, batches
from mint_compress.data.label_maps import with_class
from mint_compress.errors import MintError
from mint_compress.nn.contexts import evaluating, placed
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import first_tensor, run, to
from mint_compress.progress import Progress
from mint_compress.training.targets import class_logits, fitted


def accuracy(
    model: nn.Module,
    dataset: Source,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 256,
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
    device
        Where to compute: auto, cpu, cuda.
    batch_size
        Images at a time.
    progress
        Called as ("accuracy", batches done, batches in all), 0 in all where that is not known.

    Raises
    ------
    MintError
        An empty dataset, no logits, or labels that do not fit them: see
        :func:`mint_compress.training.targets.fitted`.
    """
    where = resolve_device(device)
    total = 0
    if progress:
        with suppress(MintError):  # a stream without a length can be measured as well
            total = batch_count(dataset, batch_size)
    seen = labelled = 0
    right = torch.zeros((), dtype=torch.int64, device=where)
    with evaluating(model), placed(model, where), torch.inference_mode():
        for done, (images, labels) in enumerate(batches(dataset, batch_size), start=1):
            outputs = first_tensor(run(model, to(images, where)))
            numbers = fitted(labels, outputs)
            right += (class_logits(outputs).argmax(1) == numbers.to(where)).sum()
            labelled += int(with_class(numbers).sum())
            seen += len(labels)
            if progress:
                progress("accuracy", done, total)
    if not seen:
        raise MintError("The dataset to measure accuracy on is empty. Give more images.")
    if not labelled:
        raise MintError("No pixel to measure accuracy on has a class: all are 255 or -100. Check the labels.")
    return int(right) / labelled


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
