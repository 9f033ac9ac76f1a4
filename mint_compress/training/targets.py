"""Which targets a network can be trained towards and measured by, and how they fit its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mint_compress.data.label_maps import VOID, class_numbers, with_class
from mint_compress.errors import MintError

TAKEN = (
    "Taken are integer class labels (n,) for outputs (n, classes), "
    "and label maps (n, H, W) for outputs (n, classes, H, W)"
)


def class_logits(outputs: Tensor) -> Tensor:
    """Logits (n, classes, ...) of outputs (n, classes, ...); of one logit z, those of two classes: 0 and z.

    A sigmoid of z is a softmax of (0, z). So the cross-entropy of the two is the binary cross-entropy of
    z, and the larger of the two is told by its sign. One logit is (n, 1, ...) or (n,).
    """
    if is_binary(outputs):
        one = outputs[:, None] if outputs.ndim == 1 else outputs
        return torch.cat([torch.zeros_like(one), one], 1)
    return outputs


def is_binary(outputs: Tensor) -> bool:
    """Whether there is one logit for every label, which tells class 1 from class 0."""
    return outputs.ndim == 1 or outputs.shape[1] == 1


def fitted(labels: Tensor, outputs: Tensor, whose: str = "the data") -> Tensor:
    """Check that labels are class numbers that fit what a network gave for them.

    Parameters
    ----------
    labels
        What the data give, on any device.
    outputs
        What the network gives for the same samples.
    whose
        The data, for messages: ``the test data``.

    Returns
    -------
    Tensor
        The labels as :func:`mint_compress.data.label_maps.class_numbers`, where they were.

    Raises
    ------
    MintError
        Labels that are no integers, of a shape that does not fit, or outside 0..classes - 1.
    """
    wanted = (*outputs.shape[:1], *outputs.shape[2:])
    if not _are_integers(labels) or wanted != tuple(labels.shape):
        raise MintError(
            f"The network's output {tuple(outputs.shape)} does not fit labels {tuple(labels.shape)} of "
            f"{labels.dtype} in {whose}. {TAKEN}."
        )
    return within(labels, outputs, whose)


def within(labels: Tensor, outputs: Tensor, whose: str) -> Tensor:
    """The part of :func:`fitted` for labels of other samples than the outputs: are they in 0..classes - 1?"""
    given = 1 if is_binary(outputs) else outputs.shape[1]
    classes = max(2, given)
    numbers = class_numbers(labels, outputs=classes)
    found = numbers[with_class(numbers)]
    if not found.numel():
        return numbers
    low, high = (int(end) for end in found.aminmax())
    if low < 0 or high >= classes:
        has = "1 output, which tells 0 from 1" if given == 1 else f"{given} outputs"
        hint = ": subtract 1 if these begin at 1" if low > 0 and high == classes else ""
        raise MintError(
            f"{whose.capitalize()} has the label {low if low < 0 else high}, but the network has {has}. "
            f"Labels are integers from 0{hint}. {TAKEN}; these are {tuple(labels.shape)} of {labels.dtype}."
        )
    return numbers


def reading(labels: Tensor, outputs: Tensor) -> tuple[str, ...]:
    """Lines that say how outputs and labels are taken where that is not plain."""
    lines: tuple[str, ...] = ()
    if is_binary(outputs):
        lines = ("one output: taken for the logit of class 1 against class 0",)
    if labels.ndim > 1:
        values = "-100" if not is_binary(outputs) and outputs.shape[1] > VOID else "255 or -100"
        lines += (f"pixels labelled {values} are ignored, in the loss and in what is measured",)
    return lines


def _are_integers(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
