"""The options of the commands, as tables that click options are made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from mint_compress.settings import COSTS, ESTIMATORS, PROVIDERS


class Values(click.ParamType):  # type: ignore[type-arg]
    """Values separated by commas: ``3,32,32``."""

    name = "values"

    def __init__(self, kind: type[int] | type[float] | type[str]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            kind = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r} is not a list of {kind}. Separate them by commas.", param, ctx)


class Sectioned(click.Option):
    """An option that says under which heading of the help it stands."""

    def __init__(self, *args: Any, section: str = "Other", **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.section = section


class Row(NamedTuple):
    """One option as a line of a table; without a metavar it is a flag, with default () it may be repeated."""

    names: str
    metavar: str | None
    type: Any
    default: Any
    help: str


def options(sections: dict[str, tuple[Row, ...]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of a table to a command, each under its section of the help."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        rows = [(section, row) for section, table in sections.items() for row in table]
        for section, row in reversed(rows):
            attrs: dict[str, Any] = {"cls": Sectioned, "section": section, "help": row.help}
            if row.metavar is None:
                attrs |= {"is_flag": True}
            else:
                attrs |= {"metavar": row.metavar, "type": row.type, "multiple": row.default == ()}
                attrs |= {"default": row.default, "show_default": row.default not in (None, ())}
            command = click.option(*row.names.split(), **attrs)(command)
        return command

    return decorate


class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order of definition."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                sections.setdefault(getattr(param, "section", "Other"), []).append(record)
        other = sections.pop("Other", [])
        for section, records in [*sections.items(), ("Other", other)]:
            with formatter.section(section):
                formatter.write_dl(records)


FILE = click.Path(path_type=Path)
BOUNDS = (
    Row("--ignore", "PATTERN", str, (), "Layers to leave alone, as in 'features.0*'; may be repeated."),
    Row(
        "--prune-inputs",
        "PATTERN",
        str,
        (),
        "Layers that may drop input features as well, as in 'layers.0'; may be repeated.",
    ),
    Row("--upper-limit", "U", float, 0.95, "Largest share of one layer's channels that may go."),
    Row("--round-to", "N", int, 8, "Keep widths that are multiples of N, where a layer is wider."),
)
COST = Row("--cost", "|".join(COSTS), str, "both", "What a channel's information is weighed against.")
PRUNING = (
    Row("--ratio", "R", float, None, "Share of the file's parameters that goes, from 0 to 1."),
    Row("--macs-ratio", "R", float, None, "Instead or as well: share of the MACs that goes."),
    *BOUNDS,
    Row("--groups", "G", int, 0, "Blocks of channels that go as a whole; 0: channels go one by one."),
    COST,
    Row("--plan", "FILE", FILE, None, "Apply a plan that --dry-run wrote."),
)
INPUT_SHAPE = Row(
    "--input-shape", "3,32,32", Values(int), None, "Without the batch; for files that leave it open."
)
MODEL = (
    Row("--arch", "NAME", str, None, "Zoo or torchvision name, timm:NAME or package.module:callable."),
    INPUT_SHAPE,
    Row(
        "--trust",
        "MODULE",
        str,
        (),
        "Import MODULE, which runs its code, so that a file may name its classes; may be repeated.",
    ),
)
DATA = (
    Row(
        "--data",
        "SPEC",
        str,
        None,
        "digits, an .npz, a folder, cifar10:DIR and the like, or package.module:function.",
    ),
    Row("--mean", "M,M,M", Values(float), None, "Per channel. [default: ImageNet's, or MNIST's for one]"),
    Row("--std", "S,S,S", Values(float), None, "Per channel."),
)
SCORING = (
    Row("--estimator", "NAME", str, "gaussian", f"{', '.join(ESTIMATORS)}, or one that a package adds."),
    Row("--calibration-images", "N", int, None, "For scoring and repair.  [default: 1024, or what there is]"),
    Row("--samples-per-class", "N", int, None, "For gmi, mint and knn.  [default: 250, or what there is]"),
)
REPAIR = (
    Row("--no-compensate", None, bool, False, "Do not refit the layers behind what went."),
    Row("--no-distill", None, bool, False, "Do not let the original teach the pruned network."),
    Row("--no-augment", None, bool, False, "Fine-tune on photographs as they are, not flipped or shifted."),
    Row("--epochs", "N", int, 5, "Of fine-tuning; 0: none."),
    Row("--lr", "LR", float, 0.05, "Peak learning rate."),
    Row("--batch-size", "N", int, 128, "Images per step."),
)
DEVICE = Row("--device", "auto|cpu|cuda|cuda:N", str, "auto", "Where PyTorch computes.")
SEED = Row("--seed", "N", int, 0, "Of everything drawn at random; the splits are fixed.")
OUTPUT = (
    Row("--output -o", "OUT.onnx", FILE, None, "The export; .safetensors and .json go beside it."),
    Row("--dry-run", None, bool, False, "Write OUT.plan.json only."),
    Row("--force", None, bool, False, "Replace files that exist."),
)
PRINTING = (
    Row("--json as_json", None, bool, False, "Print the report as JSON on stdout, and nothing else there."),
    Row("--quiet", None, bool, False, "Print errors only."),
)
MEASURING = (
    Row("--provider", "|".join(PROVIDERS), str, "auto", "Of ONNX Runtime."),
    Row("--threads", "N", int, 1, "Of ONNX Runtime."),
)
COMPRESS = {
    "Pruning": PRUNING,
    "Model": MODEL,
    "Data": DATA,
    "Scoring": SCORING,
    "Repair and fine-tuning": REPAIR,
    "Device and benchmark": (
        DEVICE,
        *MEASURING,
        Row("--bench-batch", "N", int, 1, "Images per run of the benchmark."),
        Row("--bench-seconds", "S", float, 10.0, "How long the benchmark measures."),
        SEED,
    ),
    "Output": (*OUTPUT, *PRINTING),
}
INSPECT = {"Pruning": BOUNDS, "Model": MODEL, "Output": PRINTING}
SWEEP = {
    "Grid, values separated by commas": (
        Row("--ratio", "R,R,...", Values(float), None, "Shares of the parameters that go, as in 0.5,0.75."),
        Row(
            "--macs-ratio", "R,R,...", Values(float), None, "Instead or as well: shares of the MACs that go."
        ),
        Row("--estimator", "NAME,...", Values(str), ("gaussian",), f"Of {', '.join(ESTIMATORS)}."),
        Row("--groups", "G,...", Values(int), (0,), "Blocks of channels that go as a whole; 0: one by one."),
        Row("--upper-limit", "U,...", Values(float), (0.95,), "Largest share of one layer that may go."),
        Row("--samples-per-class", "N,...", Values(int), None, "For gmi, mint and knn."),
        Row("--seed", "N,...", Values(int), (0,), "Of everything drawn at random; the splits are fixed."),
    ),
    "Pruning": (BOUNDS[0], BOUNDS[1], BOUNDS[3], COST),
    "Model": MODEL,
    "Data": (*DATA, SCORING[1]),
    "Repair and fine-tuning": REPAIR,
    "Device": (DEVICE,),
    "Output": (
        Row("--output -o", "OUT.csv", FILE, None, "The rows; .json and, with matplotlib, .svg go beside it."),
        *PRINTING,
    ),
}
BENCH = {
    "Benchmark": (
        *MEASURING,
        Row("--batch", "N", int, 1, "Images per run."),
        Row("--seconds", "S", float, 10.0, "How long to measure."),
        INPUT_SHAPE,
        SEED,
    ),
    "Output": PRINTING,
}
