"""What all stages of one run look at: settings, networks, data, task; and the notes that grow on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from mint_compress.data.calibration_draw import affordable, draw
from mint_compress.data.data import Data
from mint_compress.graph.groups import ChannelGroup
from mint_compress.memory_need import GIB, machine_memory, memory_need, within_memory
from mint_compress.nn.batch_size import kept_alive, samples_at_once
from mint_compress.nn.io import Inputs, count
from mint_compress.progress import Progress
from mint_compress.settings import Settings
from mint_compress.training.evaluation import evaluate
from mint_compress.training.tasks.protocol import Measurement, Task

log = logging.getLogger(__name__)

BATCH = 64
"""Images in one forward pass, at most."""


@dataclass
class Run:
    """What all stages of one run look at; ``notes`` grow on the way."""

    settings: Settings
    device: torch.device
    original: nn.Module
    data: Data | None
    task: Task | None
    example: Inputs
    groups: list[ChannelGroup]
    progress: Progress | None
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.settings.compute.seed

    @property
    def told(self) -> tuple[str, ...]:
        """The notes so far, and which images could not be read."""
        return (*self.notes, *(self.data.left_out if self.data else ()))

    def draw(self, asked: int | None, default: int, what_for: str = "") -> Inputs:
        """Calibration images on the device, with a note that says how many."""
        wanted, why = affordable(self.example, default) if asked is None else (asked, "")
        if asked is None and self.data is None:  # noise is worth no more time than one go takes
            wanted = min(wanted, kept_alive(self.original, self.example))
        if self.device.type == "cpu":
            wanted, why = self._within_memory(wanted, why, asked is not None)
        images = draw(
            self.data, self.example, wanted, exact=asked is not None, device=self.device, seed=self.seed
        )
        self.notes.append(f"{what_for}calibration images: {count(images)}{why}")
        return images

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

    def measure(self, model: nn.Module, *, validation: bool = False) -> Measurement | None:
        """By the task's metric, on the test split or on the validation split; None without data."""
        if self.data is None or self.task is None:
            return None
        source = self.data.validation if validation else self.data.test
        return evaluate(
            model, source, self.task, reference=self.original, device=self.device, progress=self.progress
        )
