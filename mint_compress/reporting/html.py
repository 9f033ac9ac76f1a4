"""A report as one page that a person opens, prints, or forwards: no request to any server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING

from mint_compress.reporting.records import (
    ClassChange,
    HalfSideBySide,
    LayerChange,
    LayerTime,
    Metric,
    SideBySide,
)
from mint_compress.reporting.text import left_alone_lines

if TYPE_CHECKING:
    from mint_compress.reporting import Report

MOST_CLASSES = 10
"""Classes that lost most, of which figures are shown."""


@dataclass(frozen=True)
class Bar:
    """One line of a chart: a name, lengths in percent of the longest, and what is written beside them."""

    name: str
    before: float
    after: float
    said: str


def report_page(report: Report) -> str:
    """The report as HTML.

    Everything is in the one file: style, charts, and the report itself as JSON. Light or dark as the
    reader's system is; readable on a phone; printable.
    """
    from jinja2 import Environment, StrictUndefined

    # what comes from a file, such as a layer's name, is text and never markup
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        name=PurePath(report.model).name if report.model else "A network",
        metric=report.metric,
        headline=list(_headline(report)),
        stages=_stages(report),
        layers=_layers(report.layers),
        classes=_classes(report.classes),
        widths=_widths(report),
        layer_ms=_layer_ms(report.layer_ms),
        trials=_trials(report),
        left_alone=list(left_alone_lines(report.left_alone)),
        seconds=_seconds(report),
        exports=_exports(report),
        figures=json.dumps(_without_pictures(report).to_dict(), indent=1, allow_nan=False),
    )


def _without_pictures(report: Report) -> Report:
    """The page has them already."""
    return replace(report, disagreements=tuple(replace(one, image=None) for one in report.disagreements))


def _headline(report: Report) -> Iterator[tuple[str, str]]:
    """A few (figure, what it is) pairs: who reads only these knows what came out."""
    if report.parameters is not None and report.parameters.removed is not None:
        before, after = (f"{n:,}" for n in (report.parameters.before, report.parameters.after))
        yield f"{100 * report.parameters.removed:.1f} %", f"of the parameters removed: {before} to {after}"
    if report.macs is not None and report.macs.removed is not None:
        yield f"{100 * report.macs.removed:.1f} %", "of the multiply-accumulate operations removed"
    if report.speedup is not None and report.latency_ms is not None:
        before, after = (f"{x.median:#.3g}" for x in (report.latency_ms.original, report.latency_ms.pruned))
        yield f"{report.speedup:.2f}x", f"as fast: {before} to {after} ms on {report.provider}"
    first, last = report.quality.original, report.quality.last
    if report.metric is not None and first is not None and last is not None:
        change = report.metric.change(first, last)
        yield report.metric.shown(last), f"{report.metric.name}, {change} against the original"


def _stages(report: Report) -> list[Bar]:
    """The metric after each stage."""
    found = [(name, value) for name, value in report.quality.named().items() if value is not None]
    metric = report.metric
    if metric is None or not found:
        return []
    longest = 1.0 if metric.unit == "%" else max(abs(value) for _, value in found) or 1.0
    return [Bar(name, 0.0, _share(max(value, 0), longest), metric.shown(value)) for name, value in found]


def _layers(layers: Sequence[LayerChange]) -> list[Bar]:
    """Weights of each pair of layers, before and after."""
    longest = max((one.before for one in layers), default=0)
    return [
        Bar(one.pair, _share(one.before, longest), _share(one.after, longest), _change(one)) for one in layers
    ]


def _change(layer: LayerChange) -> str:
    gone = f", {100 * (1 - layer.after / layer.before):.0f} % removed" if layer.before else ""
    return f"{layer.before:,} to {layer.after:,}{gone}"


def _classes(classes: Sequence[ClassChange]) -> list[Bar]:
    """The classes that lost most."""
    lost = sorted((one for one in classes if one.lost > 0), key=lambda one: -one.lost)[:MOST_CLASSES]
    return [
        Bar(
            f"class {one.number}",
            100 * (one.original or 0),
            100 * (one.compressed or 0),
            f"{100 * (one.original or 0):.1f} to {100 * (one.compressed or 0):.1f} % of {one.support:,}",
        )
        for one in lost
    ]


def _seconds(report: Report) -> list[Bar]:
    """How long the stages took."""
    longest = max(report.seconds.values(), default=0.0)
    return [
        Bar(stage, 0.0, _share(taken, longest), f"{taken:.1f} s") for stage, taken in report.seconds.items()
    ]


def _widths(report: Report) -> list[Bar]:
    """Output channels of each layer that loses some, before and after."""
    cuts = [
        cut for cut in (report.plan or {}).get("cuts", ()) if cut["side"] != "in" and cut["kind"] != "norm"
    ]
    longest = max((cut["total"] for cut in cuts), default=0)
    bars = []
    for cut in cuts:
        before, after = cut["total"], cut["total"] - len(cut["removed"])
        bars.append(
            Bar(cut["layer"], _share(before, longest), _share(after, longest), f"{before:,} to {after:,}")
        )
    return bars


def _layer_ms(layers: Sequence[LayerTime]) -> list[Bar]:
    """Where the time goes in the runtime, before and after."""
    longest = max((one.before for one in layers), default=0.0)
    return [
        Bar(
            one.layer, _share(one.before, longest), _share(one.after, longest),
            f"{one.before:#.3g} to {one.after:#.3g} ms",
        )
        for one in layers
    ]  # fmt: skip


def _trials(report: Report) -> list[Bar]:
    """The plans that were tried, the smallest first: what each takes, and what it is worth."""
    longest = max((one.latency_ms or 0 for one in report.trials), default=0.0)
    chosen = report.ratio.removed if report.ratio else None
    bars = []
    for one in sorted(report.trials, key=lambda one: one.removed):
        said = []
        if one.latency_ms is not None and one.speedup is not None:
            length = _share(one.latency_ms, longest)
            said.append(f"{one.latency_ms:#.3g} ms, {one.speedup:.2f}x as fast")
        if one.quality is not None and report.metric is not None:
            length = 100 * min(max(one.quality, 0), 1) if report.metric.unit == "%" else 0.0
            said.append(f"{report.metric.shown(one.quality)} on the validation split")
        said += ["chosen"] if one.removed == chosen else []
        bars.append(Bar(f"{100 * one.removed:.1f} % removed", 0.0, length, ", ".join(said)))
    return bars


def _exports(report: Report) -> dict[str, list[tuple[str, ...]]]:
    """Heading -> rows of a table of files."""
    kinds = {"Float and int8": report.int8, "Float and fp16": report.fp16}
    return {
        heading: _files(found, report.metric)
        for heading, found in kinds.items()
        if found is not None and report.metric is not None
    }


def _files(found: SideBySide | HalfSideBySide, metric: Metric) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{one.bytes / 1e6:#.3g} MB",
            metric.shown(one.quality),
            "" if one.agreement is None else f"{100 * one.agreement:.1f} %",
            f"{one.latency_ms.median:#.3g} ms",
            f"{one.speedup:.2f}x",
        )
        for name, one in found.named().items()
    ]


def _share(value: float, longest: float) -> float:
    return 100 * value / longest if longest else 0.0
