"""Training a network in place: after surgery with the original as a teacher, or from scratch without."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mint_compress.data.datasets import Source, batch_count, batches
from mint_compress.errors import MintError, first_line
from mint_compress.files import replacing
from mint_compress.nn.contexts import evaluating, placed, requiring_gradients, seeded
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import Inputs, count, first_tensor, run, select, to
from mint_compress.progress import Progress
from mint_compress.training.evaluation import accuracy
from mint_compress.training.memory_format import laid_out, lay_out_, take_channels_last

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# share of the steps in which the learning rate rises; short, as a repaired network is nearly there
WARMUP = 0.15
# between looks at the loss: each one makes a GPU wait
CHECK_EVERY = 25
UNTRAINABLE = "The network cannot be fine-tuned"
INSTEAD = "Give epochs=0 (--epochs 0), or a forward pass with a backward one."


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to.

    Attributes
    ----------
    epoch
        Counted from 1.
    loss
        Mean training loss over the epoch's batches.
    validation
        Accuracy on the validation images, a share in 0..1; None without them.
    seconds
        Wall time, validation included.
    """

    epoch: int
    loss: float
    validation: float | None
    seconds: float

    def __str__(self) -> str:
        held_out = "" if self.validation is None else f", validation {100 * self.validation:.2f} %"
        return f"epoch {self.epoch}: loss {self.loss:.4f}{held_out}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class _Settings:
    epochs: int
    lr: float
    batch_size: int
    label_smoothing: float
    temperature: float
    distill_weight: float
    weight_decay: float
    momentum: float
    max_grad_norm: float
    seed: int


def finetune(
    model: nn.Module,
    train: Source,
    *,
    teacher: nn.Module | None = None,
    validation: Source | None = None,
    epochs: int = 5,
    lr: float = 0.05,
    batch_size: int = 128,
    device: str | torch.device = "auto",
    label_smoothing: float = 0.1,
    temperature: float = 4.0,
    distill_weight: float = 0.7,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    max_grad_norm: float = 5.0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[EpochResult]:
    """Train all parameters of ``model`` in place; what the last epoch leaves is the result.

    SGD with Nesterov momentum and a one-cycle learning rate; channels-last memory where the forward pass
    takes it, and mixed precision on a GPU. On a CPU accelerate's ``ACCELERATE_MIXED_PRECISION=bf16`` asks for
    it, which pays where the processor multiplies bf16 natively (AVX512_BF16, AMX). Started by ``accelerate
    launch``, every process trains on its share of each batch.

    Parameters
    ----------
    model
        Gives logits (n, classes). Ends in eval mode, on the device and with the requires_grad flags it
        came with, without gradients.
    train
        A dataset of (image, label), shuffled anew in every epoch, or a DataLoader, whose own order and
        batch size hold.
    teacher
        The loss becomes ``distill_weight`` of the divergence from its softened outputs and the rest
        cross-entropy. Left as it was.
    validation
        Measured after every epoch for the log; nothing is chosen by it.
    epochs
        0 trains nothing.
    lr
        The highest learning rate of the cycle.
    batch_size
        Over all processes. A last batch of one image is left out: batch normalisation needs two.
    label_smoothing, temperature, weight_decay, momentum
        The usual meaning. Weight decay leaves biases and normalisation alone.
    max_grad_norm
        Gradients are scaled down to this norm, lest the first steps undo a repair.
    seed
        Decides the order, the augmentation and dropout. On a CPU two runs are equal bit for bit.
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
        something else.
    """
    settings = _Settings(
        epochs,
        lr,
        batch_size,
        label_smoothing,
        temperature,
        distill_weight if teacher is not None else 0.0,
        weight_decay,
        momentum,
        max_grad_norm,
        seed,
    )
    _check_settings(settings)
    if epochs == 0:
        model.eval()
        return []
    where = resolve_device(device)
    with ExitStack() as stack:
        if where.type == "cuda":
            stack.enter_context(torch.cuda.device(where))
        accelerator = stack.enter_context(_accelerator(where))
        stack.enter_context(seeded(seed, accelerator.device))
        stack.enter_context(_trainable(model, accelerator.device))
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
            stack.enter_context(placed(teacher, accelerator.device))
        resume = None if checkpoint is None else Path(checkpoint)
        return _Run(accelerator, model, teacher, settings, progress).train(train, validation, resume)


def _check_settings(settings: _Settings) -> None:
    def check(right: bool, name: str, wanted: str) -> None:
        if not right:
            raise MintError(f"{name} must be {wanted}, got {getattr(settings, name)}.")

    check(settings.epochs >= 0, "epochs", "0 or more")
    check(0 < settings.lr < math.inf, "lr", "above 0")
    check(settings.batch_size >= 2, "batch_size", "2 or more")
    check(0 <= settings.label_smoothing < 1, "label_smoothing", "in [0, 1)")
    check(0 < settings.temperature < math.inf, "temperature", "above 0")
    check(0 <= settings.distill_weight <= 1, "distill_weight", "in [0, 1]")
    check(settings.max_grad_norm > 0, "max_grad_norm", "above 0")


def one_cycle(step: int, steps: int) -> float:
    """Share of the highest learning rate at ``step`` of ``steps``: a linear rise, then half a cosine."""
    at = (step + 0.5) / steps
    return at / WARMUP if at < WARMUP else 0.5 * (1 + math.cos(math.pi * (at - WARMUP) / (1 - WARMUP)))


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    taught: Tensor | None,
    *,
    smoothing: float,
    temperature: float,
    weight: float,
) -> Tensor:
    """Cross-entropy with label smoothing, mixed with the divergence from a teacher's logits.

    Parameters
    ----------
    logits, taught
        (n, classes, ...) of student and teacher; None without a teacher.
    labels
        (n, ...) int64.
    smoothing, temperature, weight
        (1 - weight) * cross-entropy + weight * temperature² * KL(teacher || student), both softened
        by the temperature; the square keeps the gradients' size independent of it.

    Returns
    -------
    Tensor
        A scalar in float32, the mean over the labels, in nats.
    """
    logits = logits.float()
    loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    if taught is None:
        return loss
    student = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(taught.float() / temperature, 1)
    divergence = functional.kl_div(student, target, log_target=True, reduction="none").sum(1).mean()
    return (1 - weight) * loss + weight * temperature**2 * divergence


class _Run:
    """One training: the parts that every step needs."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        teacher: nn.Module | None,
        settings: _Settings,
        progress: Progress | None,
    ) -> None:
        self.accelerator, self.model, self.teacher = accelerator, model, teacher
        self.settings, self.progress = settings, progress
        self.optimizer = accelerator.prepare(_optimizer(model, settings))
        # a wrapper is needed only to average gradients between processes
        many = accelerator.num_processes > 1
        self.forward = accelerator.prepare_model(model) if many else model
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step = self.steps = 0
        self.layout: torch.memory_format | None = None

    def train(self, train: Source, validation: Source | None, checkpoint: Path | None) -> list[EpochResult]:
        self.steps = self.settings.epochs * batch_count(train, self.settings.batch_size)
        results = self._resumed(checkpoint)
        for epoch in range(len(results) + 1, self.settings.epochs + 1):
            start = time.perf_counter()
            loss = self._epoch(train)
            found = None
            if validation is not None:
                found = accuracy(self.model, validation, device=self.accelerator.device)
            results.append(EpochResult(epoch, loss, found, time.perf_counter() - start))
            logger.info("%s", results[-1])
            if checkpoint is not None and self.accelerator.is_main_process:
                self._keep(checkpoint, results)
        # between processes, accelerate hangs a wrapper on the network's forward
        self.accelerator.unwrap_model(self.forward, keep_fp32_wrapper=False)
        if checkpoint is not None and self.accelerator.is_main_process:
            checkpoint.unlink(missing_ok=True)
        return results

    def _keep(self, path: Path, results: list[EpochResult]) -> None:
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "results": [asdict(result) for result in results],
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def _resumed(self, path: Path | None) -> list[EpochResult]:
        """Epochs that an earlier training left in ``path``; its state becomes this one's."""
        if path is None or not path.exists():
            return []
        try:
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            same = state["settings"] == asdict(self.settings)
        except Exception as error:  # a file that torch did not write can fail in any way
            raise MintError(f"{path} is no state of a training. Delete it to begin anew.") from error
        if not same:
            raise MintError(f"{path} is of a training with other settings. Delete it to begin anew.")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise MintError(f"{path} is of another network. Delete it to begin anew.") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["order"].cpu())
        torch.set_rng_state(state["random"].cpu())
        self.step = state["step"]
        return [EpochResult(**result) for result in state["results"]]

    def _epoch(self, train: Source) -> float:
        total = torch.zeros((), device=self.accelerator.device)
        updates = 0
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for images, labels in batches(train, self.settings.batch_size, generator=self.generator):
            self.step += 1
            if count(images) >= 2 * world:
                mine = slice(rank, None, world)
                total += self._update(select(images, mine), labels[mine])
                updates += 1
            if updates % CHECK_EVERY == 1:
                self._check_finite(total)
            if self.progress:
                self.progress("fine-tuning", self.step, self.steps)
        if not updates:
            raise MintError("Fine-tuning needs at least 2 training images in a batch. Give more data.")
        self._check_finite(total)
        return float(total) / updates

    def _update(self, images: Inputs, labels: Tensor) -> Tensor:
        settings, device = self.settings, self.accelerator.device
        images, labels = self._laid_out(to(images, device)), labels.to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * one_cycle(min(self.step, self.steps) - 1, self.steps)
        self.model.train()
        with self.accelerator.autocast():
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = first_tensor(run(self.teacher, images))
            logits = first_tensor(run(self.forward, images))
        loss = distillation_loss(
            logits,
            labels,
            taught,
            smoothing=settings.label_smoothing,
            temperature=settings.temperature,
            weight=settings.distill_weight,
        )
        self.optimizer.zero_grad()
        if not loss.requires_grad:
            raise MintError(f"{UNTRAINABLE}: its outputs carry no gradient. {INSTEAD}")
        try:
            self.accelerator.backward(loss)
        except NotImplementedError as error:
            raise MintError(f"{UNTRAINABLE}: {first_line(error)}. {INSTEAD}") from error
        self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _laid_out(self, images: Inputs) -> Inputs:
        """Images with their channels last, unless the first ones show that a forward pass fails so."""
        if self.layout is None:
            networks = [n for n in (self.model, self.teacher) if n is not None]
            self.layout = torch.channels_last
            if not take_channels_last(networks, images, self.accelerator.device):
                self.layout = torch.contiguous_format
                lay_out_(self.model, self.layout)
        return laid_out(images, self.layout)

    def _check_finite(self, total: Tensor) -> None:
        if not torch.isfinite(total):
            raise MintError(
                f"The loss is no longer finite at step {self.step} with lr {self.settings.lr:g}. "
                f"Try --lr {self.settings.lr / 5:g}."
            )


def _optimizer(model: nn.Module, settings: _Settings) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if not parameters:
        raise MintError("The network has no parameters to train.")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


@contextmanager
def _trainable(model: nn.Module, device: torch.device) -> Iterator[None]:
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


@contextmanager
def _accelerator(device: torch.device) -> Iterator[Accelerator]:
    """An accelerator for ``device``; the state that accelerate keeps per process is restored after.

    That state fixes device and precision once; without this, a second training in one process could
    not run elsewhere, and an accelerator of the caller's own would be changed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states: list[dict[str, Any]] = [s._shared_state for s in (PartialState, AcceleratorState, GradientState)]
    saved = [dict(state) for state in states]
    for state in states:
        state.clear()
    on_gpu = device.type == "cuda"
    if on_gpu:
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    else:  # pays only where the processor multiplies bf16 natively and the network is wide: the user's choice
        precision = "bf16" if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16" else "no"
    try:
        yield Accelerator(cpu=not on_gpu, mixed_precision=precision)
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)
