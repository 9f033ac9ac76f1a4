"""One update of a network's parameters: forward, loss, backward, clipped, stepped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mint_compress.data.targets import Targets, targets_to
from mint_compress.errors import MintError, first_line
from mint_compress.nn.contexts import placed, requiring_gradients
from mint_compress.nn.io import Inputs, count, run, to
from mint_compress.nn.memory_format import laid_out, lay_out_, take_channels_last
from mint_compress.processes import sum_, world
from mint_compress.training.hyperparameters import Hyperparameters
from mint_compress.training.mixed_precision import MixedPrecision
from mint_compress.training.optimizer import sgd
from mint_compress.training.shared_updates import average_gradients_, shared_normalisation
from mint_compress.training.tasks.protocol import Task

UNTRAINABLE = "The network cannot be fine-tuned"
INSTEAD = "Give epochs=0 (--epochs 0), or a forward pass with a backward one."


@contextmanager
def trainable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Every parameter trainable and on ``device``; afterwards flags, place and memory layout as before."""
    with placed(model, device), requiring_gradients(model), shared_normalisation(model):
        lay_out_(model, torch.channels_last)
        try:
            yield
        finally:
            model.eval()
            for parameter in model.parameters():
                parameter.grad = None
            lay_out_(model, torch.contiguous_format)


@dataclass
class Updates:
    """Updates of a network that is :func:`trainable`, with or without a teacher."""

    device: torch.device
    model: nn.Module
    teacher: nn.Module | None
    task: Task
    hyperparameters: Hyperparameters
    optimizer: torch.optim.Optimizer = field(init=False)
    precision: MixedPrecision = field(init=False)
    layout: torch.memory_format | None = field(default=None, init=False)
    """Of the images; None until the first have shown which the networks take."""

    def __post_init__(self) -> None:
        self.optimizer = sgd(self.model, self.hyperparameters)
        self.precision = MixedPrecision(self.device)

    def update(self, images: Inputs, targets: Targets, lr: float) -> Tensor:
        """Learn from one batch at this learning rate; return its loss, a scalar on the device.

        Processes that share the work give each its part of the batch, and get its part of the loss.
        """
        images = self._laid_out(to(images, self.device))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss = self._loss(images, targets_to(targets, self.device))
        share = 1.0
        if world() > 1:
            samples = count(images)
            share = samples / float(sum_(torch.tensor(float(samples), device=self.device)))
        self.optimizer.zero_grad()
        # a mean over the processes is the mean over the samples, then
        self._backward(loss * (share * world()) if world() > 1 else loss)
        average_gradients_(self.model.parameters())
        self.precision.step(self.optimizer, self.model.parameters(), self.hyperparameters.max_grad_norm)
        return loss.detach() * share

    def _laid_out(self, images: Inputs) -> Inputs:
        """Images with their channels last, unless the first ones show that a forward pass fails so."""
        if self.layout is None:
            networks = [n for n in (self.model, self.teacher) if n is not None]
            self.layout = torch.channels_last
            if not take_channels_last(networks, images, self.device):
                self.layout = torch.contiguous_format
                lay_out_(self.model, self.layout)
        return laid_out(images, self.layout)

    def _loss(self, images: Inputs, targets: Targets) -> Tensor:
        task, weight = self.task, self.hyperparameters.distill_weight
        with self.precision.autocast():
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = run(self.teacher, images)
            if taught is not None and task.trained_on_original:
                return task.divergence(run(self.model, images), taught).float()
            outputs = task.forward(self.model, images, targets)
            loss = task.loss(outputs, targets).float()
            if taught is None:
                return loss
            return (1 - weight) * loss + weight * task.divergence(outputs, taught).float()

    def _backward(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise MintError(f"{UNTRAINABLE}: its outputs carry no gradient. {INSTEAD}")
        try:
            self.precision.backward(loss)
        except NotImplementedError as error:  # autograd's, of an operation without a backward pass
            raise MintError(f"{UNTRAINABLE}: {first_line(error)}. {INSTEAD}") from error
