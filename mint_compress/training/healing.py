"""Healing: a repaired network learns from the original on images alone, without labels.

After the closed-form repair a network is close to the original, and a training that treats it as new
undoes that. Healing keeps what is there: the statistics of normalisation stay as they are, steps are
small, and beside the outputs, activations on the way are held to the original's, at the channels that
are left (FitNets, Romero et al., ICLR 2015, with the identity for the regressor).
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mint_compress import processes
from mint_compress.data.augmentation import flip_and_crop
from mint_compress.errors import foreign
from mint_compress.nn.batch_size import samples_at_once
from mint_compress.nn.contexts import evaluating, placed, seeded
from mint_compress.nn.counting import module_macs
from mint_compress.nn.devices import resolve_device
from mint_compress.nn.io import Inputs, count, run, select, split, to
from mint_compress.nn.memory_format import laid_out, lay_out_, take_channels_last
from mint_compress.progress import Progress
from mint_compress.settings import HEAL_EPOCHS, Compute
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.training.hyperparameters import Hyperparameters
from mint_compress.training.matching import matched, places_to_match
from mint_compress.training.schedule import one_cycle
from mint_compress.training.shared_updates import average_gradients_
from mint_compress.training.tasks.protocol import Task
from mint_compress.training.updating import trainable

MATCHING_WEIGHS = 10.0
"""Weight of the activations on the way beside the outputs, both as shares of the original's variance."""
LR, BATCH_SIZE = 1e-3, 64
AFFORDABLE_MACS = {"cpu": 3e12, "cuda": 2e14}
"""Multiply-accumulate operations of a healing of which nobody said how long it may take."""
TIMED = 3
"""Updates that are tried, without a step, to tell how many fit into some minutes."""
CHECK_EVERY = 10
"""Updates between looks at the loss: each look makes a GPU wait."""


@dataclass(frozen=True)
class Healing:
    """What a healing came to.

    Attributes
    ----------
    epochs, images
        That were gone through, and of how many images; 0 epochs where one would have taken longer than it
        was given.
    before, after
        How far the network is from the original on held-out images: see
        :meth:`mint_compress.training.tasks.protocol.Task.divergence`; where outputs cannot be compared,
        activations on the way. ``before`` is NaN without such images, ``after`` infinite where a loss was.
    """

    epochs: int
    images: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether it is the healed network that is left."""
        closer = self.after < self.before or (math.isnan(self.before) and math.isfinite(self.after))
        return self.epochs > 0 and closer

    def __str__(self) -> str:
        if not self.epochs:
            return "not healed: one epoch would take long; --heal-epochs or --heal-minutes says how much"
        said = f"distance from the original on held-out images {self.before:.3g} -> {self.after:.3g}"
        undone = "" if self.kept else "; undone, as it came no closer"
        return f"healed without labels for {self.epochs} epochs of {self.images} images: {said}{undone}"


def heal_(
    model: nn.Module,
    original: nn.Module,
    plan: PruningPlan,
    images: Inputs,
    *,
    held_out: Inputs | None = None,
    task: Task | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    augment: bool = True,
    device: str | torch.device = Compute.device,
    seed: int = Compute.seed,
    progress: Progress | None = None,
) -> Healing:
    """Train ``model`` in place to give what ``original`` gives, on images without labels.

    Parameters
    ----------
    model
        The network after surgery, and mostly after its repair. Ends in eval mode.
    original
        The network before; left as it was.
    plan
        What was removed.
    images
        Real inputs (n, ...).
    held_out
        Others, on which the healed network must be closer to the original than before; otherwise the
        weights are put back.
    task
        Says how far outputs are apart; by default every output counts alike.
    epochs, minutes
        How long; by default as many epochs as :data:`AFFORDABLE_MACS` pay for, which is some minutes, and at
        most :data:`mint_compress.settings.HEAL_EPOCHS`. With ``minutes`` the result depends on the machine.
    lr
        The highest learning rate of the cycle.
    batch_size
        Images an update.
    augment
        Flip and shift images (n, 3, H, W).
    progress
        Called as ("healing", updates done, updates in all).

    Returns
    -------
    Healing

    Raises
    ------
    MintError
        A forward pass has no backward one.
    """
    where = resolve_device(device)
    numbers = Hyperparameters(lr=lr, batch_size=batch_size, seed=seed)
    with ExitStack() as stack:
        for context in (seeded(seed, where), placed(original, where), evaluating(original)):
            stack.enter_context(context)
        stack.enter_context(trainable(model, where))
        model.eval()
        updates = _Updates(model, original, plan, images, task or Task(), numbers, augment, where)
        if epochs is None:
            epochs = updates.affordable() if minutes is None else updates.within(60 * minutes)
        if not epochs:
            return Healing(0, count(images), math.nan, math.nan)
        before, weights = updates.apart(held_out), copy.deepcopy(model.state_dict())
        finite = updates.go_through(epochs, progress)
        after = updates.apart(held_out) if held_out is not None else 0.0
        healing = Healing(epochs, count(images), before, after if finite else math.inf)
        if not healing.kept:
            model.load_state_dict(weights)
    return healing


class _Updates:
    """Updates of a network towards another, with the statistics of normalisation as they are."""

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        plan: PruningPlan,
        images: Inputs,
        task: Task,
        numbers: Hyperparameters,
        augment: bool,
        device: torch.device,
    ) -> None:
        self.model, self.original, self.images, self.task = model, original, images, task
        self.numbers, self.device = numbers, device
        self.places = places_to_match(original, plan, to(select(images, slice(1)), device))
        self.generator = torch.Generator().manual_seed(numbers.seed)
        self.padding = _padding(images) if augment else 0
        self.steps = max(1, count(images) // numbers.batch_size)
        few = to(select(images, slice(2)), device)
        # normalisation does not mix the images of a batch, so a large one can be learnt from in parts
        self.at_once = samples_at_once(original, few, numbers.batch_size)
        self.layout = torch.contiguous_format
        if take_channels_last((model, original), few, device):
            self.layout = torch.channels_last
        lay_out_(model, self.layout)

    def affordable(self) -> int:
        """Epochs that :data:`AFFORDABLE_MACS` pay for; a backward pass costs two forward ones."""
        one = to(select(self.images, slice(1)), self.device)
        macs = module_macs(self.original, one).total + 3 * module_macs(self.model, one).total
        most = AFFORDABLE_MACS["cuda" if self.device.type == "cuda" else "cpu"]
        return min(HEAL_EPOCHS, int(most / (max(macs, 1) * count(self.images))))

    def within(self, seconds: float) -> int:
        """Epochs that fit into so many seconds, as far as a few updates without a step tell."""
        batches = itertools.islice(self._epochs(TIMED + 1), TIMED + 1)
        with matched(self.model, self.original, self.places) as on_the_way:
            self._learn(next(batches), on_the_way)
            start = time.perf_counter()
            for batch in batches:
                self._learn(batch, on_the_way)
        taken = processes.by_main(lambda: time.perf_counter() - start)
        return int(seconds * TIMED / (taken * self.steps))

    def go_through(self, epochs: int, progress: Progress | None) -> bool:
        """Learn from all images so many times; whether the loss stayed finite, without which it ends."""
        # steps of one size whatever the scale of outputs and losses: no network needs a rate of its own
        optimizer = torch.optim.AdamW(self.model.parameters(), self.numbers.lr, weight_decay=0.0)
        total = epochs * self.steps
        with matched(self.model, self.original, self.places) as on_the_way:
            for step, batch in enumerate(self._epochs(epochs)):
                for group in optimizer.param_groups:
                    group["lr"] = self.numbers.lr * one_cycle(step, total)
                optimizer.zero_grad()
                loss = self._learn(batch, on_the_way)
                average_gradients_(self.model.parameters(), count(batch))
                nn.utils.clip_grad_norm_(self.model.parameters(), self.numbers.max_grad_norm)
                optimizer.step()
                if step % CHECK_EVERY == 0 and not processes.sum_(loss).isfinite():
                    return False
                if progress:
                    progress("healing", step + 1, total)
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    def apart(self, images: Inputs | None) -> float:
        """How far the network is from the original; NaN without images."""
        if images is None:
            return math.nan
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad(), matched(self.model, self.original, self.places) as on_the_way:
            for number, (part, _) in enumerate(split(images, self.at_once)):
                if not processes.is_mine(number):
                    continue
                outputs, lacking = self._distances(laid_out(to(part, self.device), self.layout), on_the_way)
                total += float(outputs if outputs is not None else lacking) * count(part)
        return float(processes.sum_(total)) / count(images)

    def _epochs(self, epochs: int) -> Iterator[Inputs]:
        return itertools.chain.from_iterable(self._batches() for _ in range(epochs))

    def _batches(self) -> Iterator[Inputs]:
        order = torch.randperm(count(self.images), generator=self.generator)
        # what is left over in one epoch is not in another
        for rows in order.split(self.numbers.batch_size)[: self.steps]:
            batch = to(select(self.images, rows), self.device)
            if self.padding and isinstance(batch, Tensor):
                batch = flip_and_crop(batch, padding=self.padding, generator=self.generator)
            mine = slice(processes.rank(), None, processes.world())
            yield laid_out(batch if processes.world() == 1 else select(batch, mine), self.layout)

    def _learn(self, batch: Inputs, on_the_way: Callable[[], Tensor | None]) -> Tensor:
        """Add the gradients of one batch; return its loss."""
        total = torch.zeros((), device=self.device)
        for part, _ in split(batch, self.at_once):
            outputs, lacking = self._distances(part, on_the_way)
            loss = MATCHING_WEIGHS * lacking if outputs is None else outputs + MATCHING_WEIGHS * lacking
            loss = loss * (count(part) / count(batch))
            with foreign("The network's backward pass"):
                loss.backward()
            total += loss.detach()
        return total

    def _distances(
        self, batch: Inputs, on_the_way: Callable[[], Tensor | None]
    ) -> tuple[Tensor | None, Tensor]:
        """Of the outputs, None where they cannot be compared, and of activations on the way."""
        with torch.no_grad():
            taught = run(self.original, batch)
        given = run(self.model, batch)
        lacking = on_the_way()
        outputs = self.task.divergence(given, taught) if self.task.distils else None
        return outputs, torch.zeros((), device=self.device) if lacking is None else lacking


def _padding(images: Inputs) -> int:
    """Pixels by which images are shifted at most; 0 for what is no colour image."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        return 0
    return min(images.shape[2:]) // 8
