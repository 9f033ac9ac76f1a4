"""What a run finds out, as records: each is measured as a whole, or not there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Where a run took place.

    Attributes
    ----------
    system
        The operating system, with its version.
    device
        Name of the GPU, or the architecture of the CPU.
    threads
        That PyTorch computes with.
    """

    system: str
    device: str
    threads: int


@dataclass(frozen=True)
class DataFacts:
    """The data of a run.

    Attributes
    ----------
    name
        The data spec.
    input_shape
        Of one sample, without the batch: numbers, or a tuple or dict of such where there are several inputs.
    classes
        Number of classes; None where the targets are no class labels.
    train, validation, test
        Images that one pass over each split gives; None where a loader does not say.
    mean, std
        What was subtracted and divided by, per channel; None where the values are as they were.
    """

    name: str
    input_shape: Any
    classes: int | None
    train: int | None
    validation: int | None
    test: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


@dataclass(frozen=True)
class Metric:
    """What a network's quality is measured in.

    Attributes
    ----------
    name
        ``accuracy``, ``mIoU``.
    unit
        ``%``: values are shares, shown in percent, and their differences in points. Anything else stands
        behind the number.
    higher_is_better
        Its direction.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    def shown(self, value: float | None, digits: int = 2) -> str:
        """For a person: ``93.41 %``, ``0.9921``, ``1.204 mm``."""
        if value is None:
            return "not measured"
        if self.unit == "%":
            return f"{100 * value:.{digits}f} %"
        return f"{value:#.4g} {self.unit}".rstrip()

    def change(self, before: float, after: float) -> str:
        """For a person: ``+0.21 points``, ``-0.004``."""
        if self.unit == "%":
            return f"{100 * (after - before):+.2f} points"
        return f"{after - before:+.4g} {self.unit}".rstrip()

    def is_worse(self, value: float, than: float) -> bool:
        """Whether one value is worse than another; NaN is worse than any number."""
        worse = value < than if self.higher_is_better else value > than
        return worse or (value != value and than == than)


@dataclass(frozen=True)
class Share:
    """Share of the parameters, in [0, 1], that was asked for (None: of the MACs only), and that is gone."""

    asked: float | None
    removed: float


@dataclass(frozen=True)
class Counts:
    """A count before and after."""

    before: int
    after: int

    @property
    def removed(self) -> float | None:
        """Share that is gone, in [0, 1]; None where there was nothing."""
        return 1 - self.after / self.before if self.before else None


@dataclass(frozen=True)
class Stages:
    """The metric's value on the test split, of the original and of the smaller network after each stage.

    Attributes
    ----------
    original
        Before anything is removed.
    pruned, repaired, healed, finetuned
        After the removal, the closed-form repair, the healing on images alone, and the fine-tuning.
    """

    original: float | None = None
    pruned: float | None = None
    repaired: float | None = None
    healed: float | None = None
    finetuned: float | None = None

    def named(self) -> dict[str, float | None]:
        """What a person calls each stage -> its value."""
        return {
            "original": self.original,
            "after removal": self.pruned,
            "after repair": self.repaired,
            "after healing": self.healed,
            "after fine-tuning": self.finetuned,
        }

    @property
    def last(self) -> float | None:
        """Of the network that came out in the end."""
        stages = (self.finetuned, self.healed, self.repaired, self.pruned)
        return next((value for value in stages if value is not None), None)


@dataclass(frozen=True)
class BeforeAfter:
    """One figure of the original and of the compressed network."""

    original: float | None = None
    compressed: float | None = None


@dataclass(frozen=True)
class ClassChange:
    """What the metric is for one class: recall, intersection over union, average precision.

    Attributes
    ----------
    number
        Of the class, from 0.
    original, compressed
        Shares in [0, 1]; None where the test data have nothing of the class.
    support
        Samples, pixels or objects of it.
    """

    number: int
    original: float | None
    compressed: float | None
    support: int

    @property
    def lost(self) -> float:
        """How much went; -inf where that is not known."""
        if self.original is None or self.compressed is None:
            return -math.inf
        return self.original - self.compressed


@dataclass(frozen=True)
class Disagreement:
    """A test sample on which the compressed network does other than the original.

    Attributes
    ----------
    index
        Of the sample, as the data give them.
    said
        In what they differ.
    image
        A small picture of it as a ``data:`` URI; None where it is no image.
    """

    index: int
    said: str
    image: str | None = None


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer alone, before and after, by the widths at which it was timed."""

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class LayerChange:
    """Weights between two layers, as in a paper's layer breakdown."""

    pair: str
    before: int
    after: int


@dataclass(frozen=True)
class LeftAlone:
    """A channel group that kept its width, and why."""

    group: str
    reason: str


@dataclass(frozen=True)
class ReceiptCounts:
    """The parameters that are left, counted three ways; None: there was no such file.

    Attributes
    ----------
    modules
        From the layers' own attributes and shapes.
    tensors
        From the tensors that were saved.
    export
        From the trace that the export was made of.
    """

    modules: int
    tensors: int | None = None
    export: int | None = None

    def counted(self) -> dict[str, int]:
        """The ways that were taken, with what they gave."""
        ways = {"modules": self.modules, "tensors": self.tensors, "export": self.export}
        return {way: count for way, count in ways.items() if count is not None}


@dataclass(frozen=True)
class Parity:
    """Agreement of an export with the module it was made from.

    Attributes
    ----------
    max_abs
        Largest difference of any output element.
    max_rel
        The same, divided by the largest magnitude of that output.
    top1
        Share of samples with the same largest logit; None where the task is not classification.
    """

    max_abs: float
    max_rel: float
    top1: float | None


@dataclass(frozen=True)
class Trial:
    """A plan that was tried before one was chosen.

    Attributes
    ----------
    removed, macs_removed
        Shares of the parameters and of the MACs that it takes.
    quality
        The metric on the validation split after the repair; None where it was not measured.
    latency_ms, speedup
        Median of the export, and that of the original over it; None where they were not measured.
    """

    removed: float
    macs_removed: float
    quality: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch: median and percentiles of so many runs; ``p99`` is None where they are few."""

    median: float
    p90: float
    p99: float | None
    runs: int


@dataclass(frozen=True)
class ExportFigures:
    """One exported file.

    Attributes
    ----------
    bytes
        Of the file.
    quality
        The metric on the test split, as the runtime gives it.
    agreement
        With the original's export, as a share; None where outputs cannot be compared.
    latency_ms
        Timed in turn with the others.
    speedup
        Median of the original's export in float over its own.
    """

    bytes: int
    quality: float | None
    agreement: float | None
    latency_ms: Latency
    speedup: float


class _Named:
    """Figures of several files."""

    def named(self) -> dict[str, ExportFigures]:
        """``float original`` -> its figures, and so on."""
        return {name.replace("_", " "): figures for name, figures in vars(self).items()}


@dataclass(frozen=True)
class SideBySide(_Named):
    """The original and the pruned network, each in float and in int8."""

    float_original: ExportFigures
    float_pruned: ExportFigures
    int8_original: ExportFigures
    int8_pruned: ExportFigures


@dataclass(frozen=True)
class HalfSideBySide(_Named):
    """The original and the pruned network, each in float and in fp16."""

    float_original: ExportFigures
    float_pruned: ExportFigures
    fp16_original: ExportFigures
    fp16_pruned: ExportFigures


@dataclass(frozen=True)
class Latencies:
    """Of the exports of both networks, timed in turn."""

    original: Latency
    pruned: Latency
