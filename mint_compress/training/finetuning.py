"""Training a network in place: after surgery with the original as a teacher, or from scratch without."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress import processes
from mint_compress.data.batching import batch_count, batches, generators_of
from mint_compress.data.datasets import Source
from mint_compress.errors import MintError
from mint_compress.nn.contexts import evaluating, placed, seeded
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import count
from mint_compress.progress import Progress
from mint_compress.settings import Compute
from mint_compress.training.epochs import EpochResult
from mint_compress.training.evaluation import evaluate
from mint_compress.training.first_look import check_classes, settle_task
from mint_compress.training.hyperparameters import Hyperparameters
from mint_compress.training.original_outputs import OriginalOutputs
from mint_compress.training.resuming import Resumable
from mint_compress.training.schedule import one_cycle
from mint_compress.training.shared_updates import average_statistics_
from mint_compress.training.tasks.protocol import Task
from mint_compress.training.updating import Updates, trainable

logger = logging.getLogger(__name__)

CHECK_EVERY = 25
"""Updates between looks at the loss: each look makes a GPU wait."""


def finetune_(
    model: nn.Module,
    train: Source,
    *,
    task: Task | None = None,
    teacher: nn.Module | None = None,
    validation: Source | None = None,
    hyperparameters: Hyperparameters = Hyperparameters(),
    device: str | torch.device = Compute.device,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **numbers: Any,
) -> list[EpochResult]:
    """Train all parameters of ``model`` in place; what the last epoch leaves is the result.

    SGD with Nesterov momentum and a one-cycle learning rate; channels-last memory where the forward pass
    takes it, and mixed precision on a GPU. On a CPU accelerate's ``ACCELERATE_MIXED_PRECISION=bf16`` asks for
    it, which pays where the processor multiplies bf16 natively (AVX512_BF16, AMX). Started by torchrun or
    ``accelerate launch``, every process reads and trains on its share of each batch; batch normalisation goes
    by the whole of it.

    Parameters
    ----------
    model
        Ends in eval mode, on the device and with the requires_grad flags it came with, without gradients.
    train
        A dataset of (image, target), shuffled anew in every epoch, or a DataLoader, whose own order and
        batch size hold.
    task
        Whose loss it is; by default the one that outputs and targets speak for, see
        :func:`mint_compress.training.first_look.settle_task`.
    teacher
        The loss becomes ``distill_weight`` of the divergence from its outputs and the rest that of the
        targets; for a task that is trained on the original, the divergence alone. Left as it was.
    validation
        Measured after every epoch for the log; nothing is chosen by it.
    device
        Where to compute: auto, cpu, cuda, cuda:N.
    hyperparameters, numbers
        How long, how fast, and towards what; or some of them by name, ``epochs=5, lr=0.01``. See
        :class:`mint_compress.training.hyperparameters.Hyperparameters`.
    checkpoint
        A file that holds the state of the training after each epoch. One that an interrupted training
        with the same settings left is gone on from; at the end it is deleted.
    progress
        Called as ("fine-tuning", steps done, steps in all).

    Returns
    -------
    list of EpochResult

    Raises
    ------
    MintError
        Settings out of range, fewer than two images, a loss that is not finite, a checkpoint of
        something else, no teacher for a task that needs one; targets that do not fit the outputs, before the
        first step, and with the network as it was, unless they are hidden in a later batch of a loader.
    """
    hyperparameters = replace(hyperparameters, **numbers)
    if teacher is None:
        hyperparameters = replace(hyperparameters, distill_weight=0.0)
    if hyperparameters.epochs == 0:
        model.eval()
        return []
    with ExitStack() as stack:
        stack.enter_context(processes.sharing())
        where = resolve_device(device)
        if where.type == "cuda":
            stack.enter_context(torch.cuda.device(where))
        sources = _named(train, validation)
        task, notes = settle_task(model, sources, task=task, device=where)
        check_classes(task, train)
        if task.trained_on_original and teacher is None:
            said = "; ".join(notes) or f"task: {task.name}"
            raise MintError(f"The original network is needed to learn from ({said}). Give it as teacher.")
        if not task.distils:
            teacher = None
        stack.enter_context(seeded(hyperparameters.seed, where))
        stack.enter_context(trainable(model, where))
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
            stack.enter_context(placed(teacher, where))
        resume = None if checkpoint is None else Path(checkpoint)
        run = _Run(where, model, teacher, task, hyperparameters, progress)
        return run.train(train, validation, resume)


def _named(train: Source, validation: Source | None) -> dict[str, Source]:
    held_out = {} if validation is None else {"the validation data": validation}
    return {"the training data": train, **held_out}


class _Run:
    """One training: epochs of updates."""

    def __init__(
        self,
        device: torch.device,
        model: nn.Module,
        teacher: nn.Module | None,
        task: Task,
        hyperparameters: Hyperparameters,
        progress: Progress | None,
    ) -> None:
        self.device, self.model = device, model
        self.teacher, self.task = teacher, task
        self.hyperparameters, self.progress = hyperparameters, progress
        self.updates = Updates(device, model, teacher, task, hyperparameters)
        self.generator = torch.Generator().manual_seed(hyperparameters.seed)
        self.kept = OriginalOutputs()
        self.step = self.steps = 0

    def train(self, train: Source, validation: Source | None, checkpoint: Path | None) -> list[EpochResult]:
        epochs = self.hyperparameters.epochs
        self.steps = epochs * batch_count(train, self.hyperparameters.batch_size)
        state = Resumable(
            self.hyperparameters, self.model, self.updates.optimizer, self.updates.precision.scaler,
            [self.generator, *generators_of(train)], self.device,
        )  # fmt: skip
        results: list[EpochResult] = []
        if checkpoint is not None and checkpoint.exists():
            self.step, results = state.resume(checkpoint)
        for epoch in range(len(results) + 1, epochs + 1):
            results.append(self._epoch(epoch, train, validation))
            logger.info("%s", results[-1])
            if checkpoint is not None and processes.is_main():
                state.keep(checkpoint, self.step, results)
        if checkpoint is not None and processes.is_main():
            checkpoint.unlink(missing_ok=True)
        return results

    def _epoch(self, epoch: int, train: Source, validation: Source | None) -> EpochResult:
        start = time.perf_counter()
        loss = self._pass(train)
        found = None
        if validation is not None:
            found = evaluate(
                self.model, validation, self.task, reference=self.teacher, device=self.device, kept=self.kept
            ).value
        return EpochResult(epoch, loss, found, time.perf_counter() - start, self.task.metric)

    def _pass(self, train: Source) -> float:
        """Go through the training images once; return the mean loss of the updates."""
        total = torch.zeros((), device=self.device)
        updates = 0
        # the order must be the same everywhere, whatever each process has drawn for its own images
        processes.same_everywhere_(self.generator, torch.default_generator)
        share = processes.share(least=2)
        size = self.hyperparameters.batch_size
        for images, targets in batches(train, size, generator=self.generator, share=share):
            self.step += 1
            if count(images) >= 2:
                total += self.updates.update(images, targets, self._lr())
                updates += 1
            if updates % CHECK_EVERY == 1:
                self._check_finite(total)
            if self.progress:
                self.progress("fine-tuning", self.step, self.steps)
        if not updates:
            raise MintError("Fine-tuning needs at least 2 training images in a batch. Give more data.")
        self._check_finite(total)
        average_statistics_(self.model)
        return float(processes.sum_(total)) / updates

    def _lr(self) -> float:
        # a loader may give more batches than its length says
        return self.hyperparameters.lr * one_cycle(min(self.step, self.steps) - 1, self.steps)

    def _check_finite(self, total: Tensor) -> None:
        if not torch.isfinite(total):
            lr = self.hyperparameters.lr
            raise MintError(
                f"The loss is no longer finite at step {self.step} with lr {lr:g}. Try --lr {lr / 5:g}."
            )
