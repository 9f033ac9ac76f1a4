"""What all stages of one run look at: settings, networks, data, task; and the notes that grow on the way."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from mint_compress.data.calibration_draw import affordable, draw
from mint_compress.data.data import Data
from mint_compress.graph.groups import ChannelGroup
from mint_compress.memory_need import GIB, machine_memory, memory_need, within_memory
from mint_compress.nn.batch_size import kept_alive, samples_at_once
from mint_compress.nn.counting import module_macs
from mint_compress.nn.io import Inputs, count
from mint_compress.progress import Progress
from mint_compress.resuming.forms import MEASUREMENT, Form, Result
from mint_compress.resuming.state import Kept
from mint_compress.settings import Settings
from mint_compress.training.evaluation import evaluate
from mint_compress.training.original_outputs import OriginalOutputs
from mint_compress.training.tasks.protocol import Measurement, Task

log = logging.getLogger(__name__)

BATCH = 64
"""Images in one forward pass, at most."""
NOISE_MACS, LEAST_NOISE = 6e11, 32
"""Multiply-accumulate operations of one pass over images of noise, which say how layers are connected and not
what they are for; and how many are drawn even so."""


@dataclass
class Run:
    """What all stages of one run look at; ``notes`` grow on the way, and so does what is ``kept``."""

    settings: Settings
    device: torch.device
    original: nn.Module
    data: Data | None
    task: Task | None
    example: Inputs
    groups: list[ChannelGroup]
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)
    outputs: dict[str, OriginalOutputs] = field(default_factory=lambda: defaultdict(OriginalOutputs))
    """Of the original, by split."""

    @property
    def seed(self) -> int:
        return self.settings.compute.seed

    @property
    def told(self) -> tuple[str, ...]:
        """The notes so far, and which images could not be read."""
        return (*self.notes, *(self.data.left_out if self.data else ()))

    def once(self, stage: str, compute: Callable[[], Result], form: Form[Result]) -> Result:
        """What a stage gives, its notes included: computed, or as an interrupted run has kept it."""
        if (found := self.kept.take(stage, form)) is not None:
            result, notes = found
            self.notes += notes
            return result
        before = len(self.notes)
        result = compute()
        self.kept.keep(stage, result, form, self.notes[before:])
        return result

    def draw(self, asked: int | None, default: int, what_for: str = "") -> Inputs:
        """Calibration images on the device, with a note that says how many."""
        wanted, why = affordable(self.example, default) if asked is None else (asked, "")
        if asked is None and self.data is None:
            wanted = min(wanted, self._noise())
        if self.device.type == "cpu":
            wanted, why = self._within_memory(wanted, why, asked is not None)
        images = draw(
            self.data, self.example, wanted, exact=asked is not None, device=self.device, seed=self.seed
        )
        self.notes.append(f"{what_for}calibration images: {count(images)}{why}")
        return images

    def _noise(self) -> int:
        """Images of noise that are worth their time: no more than go through both networks in two pieces."""
        paid_for = int(NOISE_MACS / max(1, module_macs(self.original, self.example).total))
        return min(2 * kept_alive(self.original, self.example), max(LEAST_NOISE, paid_for))

    def _within_memory(self, wanted: int, why: str, asked: bool) -> tuple[int, str]:
        """How many images the machine has memory for, and why not more; a note says what they need."""
        need, there = memory_need(self.original, self.groups, self.example), machine_memory()
        if not asked and (fewer := within_memory(need, wanted)) < wanted:
            wanted, why = fewer, " (for more there is not enough memory; --calibration-images asks for them)"
        drawn = min(wanted, (self.data.sizes[0] if self.data else None) or wanted)
        needs = f"needs about {need(drawn) / GIB:.1f} GiB of memory"
        if need(drawn) > there:
            log.warning("%s, and there are %.1f; --calibration-images takes fewer", needs, there / GIB)
        said = f"{needs}; more while it trains, by --batch-size" if self.data else needs
        self.notes += [] if said in self.notes else [said]
        return wanted, why

    @cached_property
    def batch(self) -> int:
        """Images in one forward pass."""
        return samples_at_once(self.original, self.example, BATCH)

    def measure(self, after: str, model: nn.Module, *, validation: bool = False) -> Measurement | None:
        """By the task's metric, on the test split or on the validation split; None without data.

        ``after`` is the stage whose network it is.
        """
        split = "validation" if validation else "test"
        if self.data is None or self.task is None:
            return None

        def measured() -> Measurement:
            found = self.measured(model, validation=validation)
            assert found is not None
            return found

        return self.once(f"{after} on the {split} split", measured, MEASUREMENT)

    def measured(self, model: nn.Module, *, validation: bool = False) -> Measurement | None:
        """As :meth:`measure`, of a network that no later run will want to know of."""
        if (data := self.data) is None or (task := self.task) is None:
            return None
        source = data.validation if validation else data.test
        return evaluate(
            model, source, task, reference=self.original, device=self.device, progress=self.progress,
            kept=self.outputs["validation" if validation else "test"],
        )  # fmt: skip
