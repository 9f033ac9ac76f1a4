"""One update of a network's parameters: forward, loss, backward, clipped, stepped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mint_compress.data.targets import Targets, targets_to
from mint_compress.errors import MintError, first_line
from mint_compress.nn.contexts import placed, requiring_gradients
from mint_compress.nn.io import Inputs, run, to
from mint_compress.nn.memory_format import laid_out, lay_out_, take_channels_last
from mint_compress.training.hyperparameters import Hyperparameters
from mint_compress.training.optimizer import sgd
from mint_compress.training.tasks.protocol import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

UNTRAINABLE = "The network cannot be fine-tuned"
INSTEAD = "Give epochs=0 (--epochs 0), or a forward pass with a backward one."


@contextmanager
def trainable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Every parameter trainable and on ``device``; afterwards flags, place and memory layout as before."""
    with placed(model, device), requiring_gradients(model):
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

    accelerator: Accelerator
    model: nn.Module
    teacher: nn.Module | None
    task: Task
    hyperparameters: Hyperparameters
    optimizer: torch.optim.Optimizer = field(init=False)
    forward: nn.Module = field(init=False)
    layout: torch.memory_format | None = field(default=None, init=False)
    """Of the images; None until the first have shown which the networks take."""

    def __post_init__(self) -> None:
        self.optimizer = self.accelerator.prepare(sgd(self.model, self.hyperparameters))
        # a wrapper is needed only to average gradients between processes
        many = self.accelerator.num_processes > 1
        self.forward = self.accelerator.prepare_model(self.model) if many else self.model

    def update(self, images: Inputs, targets: Targets, lr: float) -> Tensor:
        """Learn from one batch at this learning rate; return its loss, a scalar on the device."""
        device = self.accelerator.device
        images = self._laid_out(to(images, device))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss = self._loss(images, targets_to(targets, device))
        self.optimizer.zero_grad()
        self._backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.hyperparameters.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def unwrap(self) -> None:
        """Give the network back its own forward pass: between processes, accelerate hangs a wrapper on it."""
        self.accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)

    def _laid_out(self, images: Inputs) -> Inputs:
        """Images with their channels last, unless the first ones show that a forward pass fails so."""
        if self.layout is None:
            networks = [n for n in (self.model, self.teacher) if n is not None]
            self.layout = torch.channels_last
            if not take_channels_last(networks, images, self.accelerator.device):
                self.layout = torch.contiguous_format
                lay_out_(self.model, self.layout)
        return laid_out(images, self.layout)

    def _loss(self, images: Inputs, targets: Targets) -> Tensor:
        task, weight = self.task, self.hyperparameters.distill_weight
        with self.accelerator.autocast():
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = run(self.teacher, images)
            if taught is not None and task.trained_on_original:
                return task.divergence(run(self.forward, images), taught).float()
            outputs = task.forward(self.forward, images, targets)
            loss = task.loss(outputs, targets).float()
            if taught is None:
                return loss
            return (1 - weight) * loss + weight * task.divergence(outputs, taught).float()

    def _backward(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise MintError(f"{UNTRAINABLE}: its outputs carry no gradient. {INSTEAD}")
        try:
            self.accelerator.backward(loss)
        except NotImplementedError as error:  # autograd's, of an operation without a backward pass
            raise MintError(f"{UNTRAINABLE}: {first_line(error)}. {INSTEAD}") from error
