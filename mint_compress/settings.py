"""Every option, said once: its name, type, default, what it means, and which values can work.

The command's options and their help, the library's arguments, the grid of a sweep, the settings in a report
and the table of docs/options.md are made from the fields of these classes. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal

from mint_compress.errors import MintError
from mint_compress.estimators import BUILT_IN, added, uses_samples
from mint_compress.options import (
    AMOUNT,
    COUNT,
    FASTER,
    FINITE,
    LIMIT,
    OBJECT,
    POSITIVE,
    SCALES,
    SHAPE,
    SHARE,
    WHOLE,
    Group,
    Option,
    Rule,
    is_place,
    option,
    options_of,
)

CALIBRATION_IMAGES = 1024
SAMPLES_PER_CLASS = 250
"""Unless the user says otherwise, and as far as there are so many."""

TASKS = (
    "classification",
    "multilabel",
    "segmentation",
    "regression",
    "detection",
    "embedding",
    "imitation",
)
TASK = Rule(
    lambda v: not isinstance(v, str) or v in TASKS or is_place(v),
    f"be {', '.join(TASKS)}, or package.module:object",
)
HEAL_EPOCHS = 10
"""Unless the user says otherwise, and as far as they take no longer than some minutes."""

Cost = Literal["params", "macs", "both", "latency"]


@dataclass(frozen=True)
class Budget(Group):
    """What a plan must reach, and the bounds it must keep.

    Attributes
    ----------
    ratio, macs_ratio
        Share of all parameters, and of all MACs, that goes at least, above 0 and below 1: one or both.
    speedup, latency
        How many times as fast the export must be as the original's, and how many milliseconds a batch may
        take: medians, measured with the provider, threads and batch of :class:`Benchmark`.
    max_drop
        How much worse the metric may get on the validation split, in points where its unit is ``%``. Without
        any other goal, the largest share of the parameters that keeps it; beside one, a check.
    upper_limit
        Largest share of one channel group's positions that may go.
    round_to
        Widths kept are multiples of this where the layer is wider. None: of 8, or of 4, 2 or 1 where with 8
        more would go than was asked, or less can.
    blocks
        Contiguous blocks per group, kept or removed whole; 0: one by one. Blocks are not rounded.
    cost
        What a position's score is divided by before all are compared: the share of the network's
        parameters, of its MACs, the mean of both, or of its latency, that goes with it. Where a plan that
        reaches ``ratio`` would not reach ``macs_ratio``, MACs weigh more, as much as it takes. None: latency
        where that is asked for, else both.
    """

    ratio: float | None = option(
        None, "Share of the file's parameters that goes.", metavar="R", kind=float, rule=SHARE, kw_only=False,
        remedy="Give the share of the parameters that goes, for example 0.75.",
        default_text="one goal is required",
    )  # fmt: skip
    macs_ratio: float | None = option(
        None, "Instead or as well: share of the multiply-accumulate operations (MACs) that goes.",
        metavar="R", kind=float, rule=SHARE,
        remedy="Give the share of the MACs that goes, for example 0.5.",
    )  # fmt: skip
    speedup: float | None = option(
        None, "Instead or as well: how many times as fast the export is, measured here.", metavar="X",
        kind=float, rule=FASTER, remedy="Give how many times as fast it should be, for example 2.",
    )  # fmt: skip
    latency: float | None = option(
        None, "Instead or as well: milliseconds that the export takes at most, median, measured here.",
        metavar="MS", kind=float, rule=POSITIVE, remedy="Give milliseconds, for example 3.",
    )  # fmt: skip
    max_drop: float | None = option(
        None, "Instead: as much as goes while validation gets no worse than so many points (or units of the "
        "metric). Beside another goal: fail where it gets worse.", metavar="D", kind=float, rule=AMOUNT,
        remedy="Give points, for example 1.",
    )  # fmt: skip
    upper_limit: float = option(
        0.95, "Largest share of one layer's channels that may go; 1: no limit.", metavar="U", kind=float,
        rule=LIMIT, remedy="Give the share of a layer that may go at most; 1: no limit.",
    )  # fmt: skip
    round_to: int | None = option(
        None, "Keep widths that are multiples of N, where a layer is wider.", metavar="N", kind=int,
        rule=COUNT, default_text="8; 4, 2 or 1 where more would go than asked",
    )  # fmt: skip
    blocks: int = option(
        0, "Blocks of channels that go as a whole, the paper's groups; 0: channels go one by one.",
        metavar="G", kind=int, rule=WHOLE, alias="groups",
    )  # fmt: skip
    cost: Cost | None = option(
        None, "What a channel's information is weighed against.", metavar="params|macs|both|latency",
        choices=("params", "macs", "both", "latency"), default_text="both; latency where that is asked for",
    )  # fmt: skip

    @property
    def timed(self) -> bool:
        """Whether exports are timed before a plan is settled."""
        return self.speedup is not None or self.latency is not None

    @property
    def searched(self) -> bool:
        """Whether it is the loss alone that says how much goes."""
        return self.max_drop is not None and not self.timed and (self.ratio, self.macs_ratio) == (None, None)

    @property
    def price(self) -> Cost:
        """The cost, where none is given the usual one."""
        return self.cost or ("latency" if self.timed else "both")


@dataclass(frozen=True)
class Layers(Group):
    """Which layers are pruned."""

    ignore: tuple[str, ...] = option(
        (), "Layers to leave alone, their children included, as in 'features.0*'; may be repeated.",
        metavar="PATTERN", several="again",
    )  # fmt: skip
    prune_inputs: tuple[str, ...] = option(
        (), "Layers that may drop input features as well, as in 'layers.0'; may be repeated.",
        metavar="PATTERN", several="again",
    )  # fmt: skip


@dataclass(frozen=True)
class Model(Group):
    """How to understand the file of the network."""

    arch: str | None = option(
        None, "Zoo or torchvision name, timm:NAME or package.module:callable.", metavar="NAME",
        default_text="from the file",
    )  # fmt: skip
    weights: str | None = option(
        None, "Which weights of a file that holds several, as in ema: their name, or a part of it.",
        metavar="NAME", default_text="the first that are no average of others",
    )  # fmt: skip
    input_shape: tuple[int, ...] | None = option(
        None, "Without the batch; for files that leave it open.", metavar="3,32,32", kind=int,
        several="commas", rule=SHAPE, remedy="For example 3,32,32.",
        default_text="from the data, else the builder",
    )  # fmt: skip
    trust: tuple[str, ...] = option(
        (), "Import MODULE, which runs its code, so that a file may name its classes; may be repeated.",
        metavar="MODULE", several="again",
    )  # fmt: skip


@dataclass(frozen=True)
class Normalisation(Group):
    """What images are normalised with; it is always printed."""

    mean: tuple[float, ...] | None = option(
        None, "Per channel.", metavar="M,M,M", kind=float, several="commas", rule=FINITE,
        default_text="ImageNet's, MNIST's for one channel, none for float arrays",
    )  # fmt: skip
    std: tuple[float, ...] | None = option(
        None, "Per channel.", metavar="S,S,S", kind=float, several="commas", rule=SCALES,
        default_text="as for mean",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            given, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise MintError(f"{given} is given without {missing}. Give both, one number per channel.")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise MintError(
                f"mean has {len(self.mean)} values and std {len(self.std)}. Give one number per channel."
            )


@dataclass(frozen=True)
class Job(Group):
    """What the network is for: how it is trained and measured."""

    task: Any = option(
        None, f"What the network is for: {', '.join(TASKS)}, or package.module:object.", metavar="NAME",
        rule=TASK, default_text="from the targets",
    )  # fmt: skip
    loss: Any = option(
        None, "Loss of (outputs, targets) in the place of the task's.", metavar="package.module:callable",
        rule=OBJECT, default_text="the task's",
    )  # fmt: skip
    metric: Any = option(
        None, "Metric of (outputs, targets), or a torchmetrics class, in the place of the task's.",
        metavar="package.module:callable", rule=OBJECT, default_text="the task's",
    )  # fmt: skip


@dataclass(frozen=True)
class Scoring(Group):
    """How channels are scored."""

    estimator: str = option(
        "gaussian",
        f"{', '.join(BUILT_IN)}, or one that a package adds.",
        metavar="NAME",
        choices=BUILT_IN,
        further=added,
    )
    calibration_images: int | None = option(
        None, "For scoring and repair.", metavar="N", kind=int, rule=COUNT,
        default_text=f"{CALIBRATION_IMAGES}, or what there is",
    )  # fmt: skip
    samples_per_class: int | None = option(
        None, "For gmi, mint and knn.", metavar="N", kind=int, rule=COUNT,
        default_text=f"{SAMPLES_PER_CLASS}, or what there is",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_class is not None and not self.takes_samples:
            raise MintError(
                "samples-per-class is for gmi, mint and knn; gaussian takes --calibration-images."
            )

    @property
    def takes_samples(self) -> bool:
        """Whether the estimator looks at sampled activations, not at second moments."""
        return uses_samples(self.estimator)


@dataclass(frozen=True)
class Repair(Group):
    """The closed-form repair."""

    compensate: bool = option(True, "Do not refit the layers behind what went.")


@dataclass(frozen=True)
class Healing(Group):
    """Learning from the original after the repair, on real images alone, without labels."""

    heal_epochs: int | None = option(
        None, "Of healing: the original teaches the repaired network on the calibration images; 0: none.",
        metavar="N", kind=int, rule=WHOLE, default_text=f"{HEAL_EPOCHS}, or what takes some minutes",
    )  # fmt: skip
    heal_minutes: float | None = option(
        None, "Instead: as many epochs of healing as fit into so many minutes here; 0: none.", metavar="M",
        kind=float, rule=AMOUNT,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heal_epochs is not None and self.heal_minutes is not None:
            raise MintError("heal-epochs and heal-minutes are both given. Give one of them.")


@dataclass(frozen=True)
class Finetuning(Group):
    """Training after the repair."""

    epochs: int = option(5, "Of fine-tuning; 0: none.", metavar="N", kind=int, rule=WHOLE)
    lr: float = option(0.05, "Peak learning rate.", metavar="LR", kind=float, rule=POSITIVE)
    batch_size: int = option(128, "Images per step.", metavar="N", kind=int, rule=COUNT)
    distill: bool = option(True, "Do not let the original teach the pruned network.")
    augment: bool = option(
        True,
        "Fine-tune on photographs (colour images in folders, arrays of uint8, cifar10, cifar100 and stl10) "
        "as they are, not flipped left to right and shifted.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size == 1 and self.epochs:
            raise MintError("batch-size must be at least 2 to fine-tune, not 1: BatchNorm needs two images.")


@dataclass(frozen=True)
class Compute(Group):
    """Where PyTorch computes, and what is drawn at random."""

    device: str = option(
        "auto", "Where PyTorch computes.", metavar="auto|cpu|cuda|cuda:N",
        choices=("auto", "cpu", "cuda", "cuda:N"),
    )  # fmt: skip
    workers: int | None = option(
        None, "Processes that read image files; 0: the run itself reads.", metavar="N", kind=int, rule=WHOLE,
        default_text="one a core, 8 at most",
    )  # fmt: skip
    seed: int = option(
        0, "Of everything drawn at random; how data are split does not depend on it.", metavar="N", kind=int,
        rule=WHOLE,
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))  # a torch.device is taken too
        super().__post_init__()


@dataclass(frozen=True)
class Benchmark(Group):
    """How exported files are run and timed."""

    provider: str = option(
        "auto",
        "What the export's runtime computes on.",
        metavar="auto|cpu|cuda",
        choices=("auto", "cpu", "cuda"),
    )
    threads: int = option(1, "Of the export's runtime.", metavar="N", kind=int, rule=COUNT)
    batch: int = option(
        1, "Images per run of the benchmark.", metavar="N", kind=int, rule=COUNT, name="bench_batch"
    )
    seconds: float = option(
        10.0, "How long the benchmark measures.", metavar="S", kind=float, rule=POSITIVE, name="bench_seconds"
    )


@dataclass(frozen=True)
class Export(Group):
    """What the exported file takes."""

    dynamic_size: bool = option(
        False, "Let the export take images of other heights and widths; one is tried on both networks."
    )
    int8: bool = option(
        False, "Also write OUT.int8.onnx, quantised on calibration images, and measure it beside float."
    )
    fp16: bool = option(
        False, "Also write OUT.fp16.onnx in half precision and measure it, where the export runs on a GPU."
    )
    export_part: str | None = option(
        None,
        "What is exported of a network that cannot be as a whole: a module of it that takes what the network "
        "takes, or package.module:callable.",
        metavar="NAME",
        default_text="all; of torchvision's detectors, their raw heads",
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run.

    ``Settings(budget=Budget(0.5), scoring=Scoring(estimator="gmi"))`` and
    ``Settings.of(ratio=0.5, estimator="gmi")`` are the same.
    """

    budget: Budget = Budget()
    layers: Layers = Layers()
    model: Model = Model()
    normalisation: Normalisation = Normalisation()
    job: Job = Job()
    scoring: Scoring = Scoring()
    repair: Repair = Repair()
    healing: Healing = Healing()
    finetuning: Finetuning = Finetuning()
    compute: Compute = Compute()
    benchmark: Benchmark = Benchmark()
    export: Export = Export()

    def __post_init__(self) -> None:
        mean, shape = self.normalisation.mean, self.model.input_shape
        if mean is not None and shape is not None and len(mean) not in (1, shape[0]):
            raise MintError(
                f"mean and std have {len(mean)} values, but input-shape {','.join(map(str, shape))} "
                f"has {shape[0]} channels. Give one number per channel."
            )

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """Settings from options by their names, as the command has them (``bench_batch``).

        Raises
        ------
        MintError
            For the first value that cannot work.
        TypeError
            There is no such option.
        """
        return cls().replace(**options)

    def replace(self, **options: Any) -> Settings:
        """These settings with some options changed; see :meth:`of`."""
        changes: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            place = _places().get(name)
            if place is None:
                near = get_close_matches(name, _places(), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"There is no option {name!r}.{hint}")
            changes.setdefault(place[0], {})[place[1]] = value
        groups = {group: replace(getattr(self, group), **values) for group, values in changes.items()}
        return replace(self, **groups)

    def flat(self) -> dict[str, Any]:
        """Option -> value, in the order of the classes."""
        return {
            one.name: getattr(getattr(self, group), name)
            for group, kind in groups().items()
            for name, one in options_of(kind).items()
        }


def groups() -> dict[str, type[Group]]:
    """Field of :class:`Settings` -> its class."""
    usual = Settings()
    return {f.name: type(getattr(usual, f.name)) for f in fields(Settings)}


def _places() -> Mapping[str, tuple[str, str]]:
    """Option, or its alias -> the field of the settings and the field in there."""
    found: dict[str, tuple[str, str]] = {}
    for group, kind in groups().items():
        for name, one in options_of(kind).items():
            found |= {said: (group, name) for said in (one.name, one.alias) if said}
    return found


PLAN = Option(None, "Apply a plan that --dry-run wrote.", "FILE", Path, name="plan")
DATA = Option(
    None,
    "digits; an .npz with x_train, y_train, x_test, y_test; a folder with train/, val/, test/; images:DIR, "
    "images without labels at any depth; cifar10:DIR, and so cifar100, mnist, fashion_mnist, kmnist, svhn, "
    "stl10; package.module:function returning loaders.",
    "SPEC", name="data", default_text="none",
)  # fmt: skip
OUTPUT = Option(
    None, "The export, whose suffix picks the exporter; .safetensors and .json go beside it.", "OUT.onnx",
    Path, name="output", short="-o", default_text="required",
)  # fmt: skip
DRY_RUN = Option(False, "Write OUT.plan.json only.", name="dry_run")
FORCE = Option(False, "Replace files that exist.", name="force")
RESUME = Option(
    False, "Go on where this command was interrupted; without this, it begins anew.", name="resume"
)
JSON = Option(False, "Print the report as JSON on stdout, and nothing else there.", name="json")
MAX_LATENCY = Option(
    None, "Milliseconds that the median may take; more is a failed check.", "MS", float, rule=POSITIVE,
    name="max_latency", default_text="any",
)  # fmt: skip
QUIET = Option(False, "Print errors only.", name="quiet")


def sections() -> dict[str, list[Option]]:
    """All options of ``compress``, by section, in the order of the help and of docs/options.md."""

    def of(*kinds: type[Group]) -> list[Option]:
        return [one for kind in kinds for one in options_of(kind).values()]

    return {
        "Pruning": [*of(Budget, Layers), PLAN],
        "Model": of(Model),
        "Data": [DATA, *of(Normalisation)],
        "Task": of(Job),
        "Scoring": of(Scoring),
        "Repair and fine-tuning": of(Repair, Healing, Finetuning),
        "Running": of(Compute, Benchmark),
        "Output": [OUTPUT, *of(Export), DRY_RUN, FORCE, RESUME, JSON, QUIET],
    }


GRID = ("ratio", "macs_ratio", "estimator", "blocks", "upper_limit", "samples_per_class", "seed")
"""The options that a sweep tries several values of."""


def combinations(base: Settings, values: Mapping[str, Sequence[Any]]) -> Iterator[Settings]:
    """The settings with every combination of some options' values, in a fixed order, none twice.

    ``samples_per_class`` counts for estimators of samples only; for others all its values are one.

    Raises
    ------
    MintError
        For the first value that cannot work.
    TypeError
        An option that is not in :data:`GRID`.
    """
    if unknown := values.keys() - set(GRID):
        raise TypeError(f"{sorted(unknown)[0]!r} is not swept over. Choose from: {', '.join(GRID)}.")
    # the last one changes fastest
    order = ("estimator", "samples_per_class", "blocks", "upper_limit", "seed", "macs_ratio", "ratio")
    usual = base.flat()
    found: dict[Settings, None] = {}
    for row in product(*(values.get(name) or (usual[name],) for name in order)):
        chosen = dict(zip(order, row, strict=True))
        if not Scoring(estimator=chosen["estimator"]).takes_samples:
            chosen["samples_per_class"] = None
        found.setdefault(base.replace(**chosen))
    yield from found
