"""The numbers that decide how a training goes, and which of them make sense."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mint_compress.errors import MintError
from mint_compress.settings import Compute, Finetuning


@dataclass(frozen=True)
class Hyperparameters:
    """How a training goes; with the same ones it can be gone on from where it was interrupted.

    Attributes
    ----------
    epochs
        0 trains nothing.
    lr
        The highest learning rate of the cycle.
    batch_size
        Over all processes. A last batch of one image is left out: batch normalisation needs two.
    distill_weight
        Of the divergence from the teacher in the loss, in [0, 1]; that of the targets has the rest.
    weight_decay
        L2 penalty on weights; biases and normalisation are left alone.
    momentum
        Nesterov's.
    max_grad_norm
        Gradients are scaled down to this norm, lest the first steps undo a repair.
    seed
        Decides the order, the augmentation and dropout. On a CPU two runs are equal bit for bit.

    Raises
    ------
    MintError
        One is out of range.
    """

    epochs: int = Finetuning.epochs
    lr: float = Finetuning.lr
    batch_size: int = Finetuning.batch_size
    distill_weight: float = 0.7
    weight_decay: float = 5e-4
    momentum: float = 0.9
    max_grad_norm: float = 5.0
    seed: int = Compute.seed

    def __post_init__(self) -> None:
        self._check(self.epochs >= 0, "epochs", "0 or more")
        self._check(0 < self.lr < math.inf, "lr", "above 0")
        self._check(self.batch_size >= 2, "batch_size", "2 or more")
        self._check(0 <= self.distill_weight <= 1, "distill_weight", "in [0, 1]")
        self._check(self.max_grad_norm > 0, "max_grad_norm", "above 0")

    def _check(self, right: bool, name: str, wanted: str) -> None:
        if not right:
            raise MintError(f"{name} must be {wanted}, got {getattr(self, name)}.")
