"""Click options made from the settings, each under its section of the help, and the same as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mint_compress.options import Option, options_of
from mint_compress.settings import (
    DATA,
    FORCE,
    GRID,
    JSON,
    MAX_LATENCY,
    OUTPUT,
    QUIET,
    Benchmark,
    Budget,
    Compute,
    Finetuning,
    Healing,
    Job,
    Layers,
    Model,
    Normalisation,
    Repair,
    Scoring,
    sections,
)

Sections = Mapping[str, Iterable[Option]]


class Values(click.ParamType):  # type: ignore[type-arg]
    """Values separated by commas: ``3,32,32``."""

    name = "values"

    def __init__(self, kind: type) -> None:
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
    """An option that knows its heading in the help, and may have a name that the help does not list."""

    def __init__(self, *args: Any, section: str = "Other", alias: str = "", **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.section, self.alias = section, alias

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        names = self.opts
        self.opts = [name for name in names if name != self.alias]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


class SectionedCommand(click.Command):
    """A command whose help lists its options by section, in the order of definition."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                found.setdefault(getattr(param, "section", "Other"), []).append(record)
        other = found.pop("Other", [])
        for section, records in [*found.items(), ("Other", other)]:
            with formatter.section(section):
                formatter.write_dl(records)


def options(found: Sections) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to a command, each under its section of the help."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        rows = [(section, one) for section, several in found.items() for one in several]
        for section, one in reversed(rows):
            command = _decorator(section, one)(command)
        return command

    return decorate


def _decorator(section: str, one: Option) -> Any:
    alias = f"--{one.alias}" if one.alias else ""
    # click finds the name of the argument among those that begin without a dash
    names = [name for name in (one.flag, alias, one.short, _argument(one)) if name]
    attrs: dict[str, Any] = {"cls": Sectioned, "section": section, "alias": alias, "help": _help(one)}
    if one.metavar is None:
        # click 8.3.0 to 8.3.2 take a flag whose default is True for one that is given
        return click.option(*names, is_flag=True, callback=lambda *given: given[-1] != one.default, **attrs)
    kind: Any = click.Path(path_type=Path) if one.kind is Path else one.kind
    return click.option(
        *names, metavar=one.metavar, type=Values(one.kind) if one.several == "commas" else kind,
        multiple=one.several == "again", default=one.default, **attrs,
    )  # fmt: skip


def _argument(one: Option) -> str:
    """The name under which a command gets it: ``json`` is a module."""
    return "as_json" if one.name == "json" else one.name


def default_of(one: Option) -> str:
    """What a person is told of the default; nothing of flags, and of what is empty."""
    if one.default_text or isinstance(one.default, bool) or one.default in (None, ()):
        return one.default_text
    values = one.default if isinstance(one.default, tuple) else (one.default,)
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _help(one: Option) -> str:
    default = default_of(one)
    return f"{one.help}  [default: {default}]" if default and not default.startswith("required") else one.help


def table() -> str:
    """The options of ``compress`` as the Markdown table of docs/options.md."""
    lines = ["| | option | meaning | default |", "|---|---|---|---|"]
    for section, several in sections().items():
        for place, one in enumerate(several):
            flags = f"{one.short}, {one.flag}" if one.short else one.flag
            shown = f"`{flags} {one.metavar}`" if one.metavar else f"`{flags}`"
            cells = ("" if place else section, shown, one.help, default_of(one))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _some(*kinds: Any, only: Sequence[str] = ()) -> list[Option]:
    return [one for kind in kinds for name, one in options_of(kind).items() if not only or name in only]


def _swept() -> list[Option]:
    """The options of a grid, which take several values separated by commas."""
    every = {one.name: one for several in sections().values() for one in several}
    return [
        replace(
            one, metavar=f"{(one.metavar or '').split('|')[0]},...", several="commas", default_text="",
            default=None if one.default is None else (one.default,),
        )
        for one in (every[name] for name in GRID)
    ]  # fmt: skip


BOUNDS = [*_some(Budget, only=("upper_limit", "round_to")), *_some(Layers)]
PRINTING = [JSON, QUIET]

COMPRESS: Sections = sections()
INSPECT: Sections = {"Pruning": BOUNDS, "Model": _some(Model), "Output": PRINTING}
SWEEP: Sections = {
    "Grid, values separated by commas": _swept(),
    "Pruning": [*_some(Budget, only=("round_to", "cost")), *_some(Layers)],
    "Model": _some(Model),
    "Data": [DATA, *_some(Normalisation), *_some(Scoring, only=("calibration_images",))],
    "Task": _some(Job),
    "Repair and fine-tuning": _some(Repair, Healing, Finetuning),
    "Running": _some(Compute, only=("device", "workers")),
    "Output": [
        replace(
            OUTPUT, metavar="OUT.csv",
            help="The rows; .json and, with matplotlib, .svg go beside it.",
        ),
        *PRINTING,
    ],
}  # fmt: skip
_TIMING = [replace(one, name=name) for name, one in options_of(Benchmark).items()]  # here without a prefix
BENCH: Sections = {
    "Benchmark": _TIMING,
    "Inputs": [*_some(Model, only=("input_shape",)), *_some(Compute, only=("seed",))],
    "Output": PRINTING,
}
VERIFY: Sections = {"Benchmark": [*_TIMING, MAX_LATENCY], "Output": PRINTING}
REPORT: Sections = {
    "Output": [
        replace(OUTPUT, metavar="OUT.html", help="The page.", default_text="beside the report"), FORCE,
    ]
}  # fmt: skip
