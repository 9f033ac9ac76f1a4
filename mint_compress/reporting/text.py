"""A report in words: notes, a table of the layers, what was left alone, and ten lines that sum it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from mint_compress.reporting.records import (
    Counts,
    HalfSideBySide,
    Latencies,
    Latency,
    LayerChange,
    LeftAlone,
    Metric,
    Parity,
    ReceiptCounts,
    SideBySide,
    Stages,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mint_compress.reporting import Report


def as_text(result: object) -> str:
    """What rich prints of ``result`` on a terminal of 80 columns without colours."""
    import io

    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=80, color_system=None, force_terminal=False,
        force_jupyter=False,  # there rich would display, too, what is only captured here
    )  # fmt: skip
    with console.capture() as capture:
        console.print(result)
    return capture.get()


def page(
    notes: Iterable[str],
    table: Table | None,
    title: str,
    left_alone: Sequence[LeftAlone],
    summary: Iterable[tuple[str, str]],
) -> Iterator[RenderableType]:
    """What rich prints of a result: notes, a table, the groups left alone under ``title``, and a summary."""
    from rich.padding import Padding
    from rich.text import Text

    for note in notes:
        yield Text(f"Note: {note}")
    if table is not None:
        yield table
    if left_alone:
        yield Text(title)
    for line in left_alone_lines(left_alone):
        yield Padding(Text(line), (0, 0, 0, 2))
    yield Text()
    for name, line in summary:
        text = Text(f"{name:<12}", style="bold")
        text.append(line, style="not bold")
        yield text


def figures_table(
    names: Sequence[str], numbers: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> Table:
    """A table with columns of names, which may fold, and of numbers, which stand at the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in names:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for said, counted in rows:
        # a Text is taken as it is: brackets in a layer's name are not markup
        table.add_row(*map(Text, said), *counted)
    return table


def left_alone_lines(left_alone: Sequence[LeftAlone]) -> Iterator[str]:
    """A line for each cause, with its groups, and with the details in brackets if all have the same."""
    causes: dict[str, list[LeftAlone]] = {}
    for entry in left_alone:
        causes.setdefault(entry.reason.partition(" (")[0], []).append(entry)
    for cause, entries in causes.items():
        reasons = {entry.reason for entry in entries}
        said = cause if len(reasons) > 1 else reasons.pop()
        count = f" ({len(entries)} groups)" if len(entries) > 1 else ""
        yield f"{said}{count}: {', '.join(entry.group for entry in entries)}"


def report_text(report: Report) -> Iterator[RenderableType]:
    """What rich prints of a report."""
    table = _layer_table(report.layers) if report.layers else None
    yield from page(report.notes, table, "Left alone:", report.left_alone, _summary(report))


def _layer_table(layers: Sequence[LayerChange]) -> Table:
    rows = []
    for layer in layers:
        removed = Counts(layer.before, layer.after).removed
        share = "-" if removed is None else _percent(removed)
        rows.append(([layer.pair], [f"{layer.before:,}", f"{layer.after:,}", share]))
    return figures_table(["Layer pair"], ["Parameters before", "after", "removed"], rows)


def _summary(report: Report) -> Iterator[tuple[str, str]]:
    """A few (title, line) pairs: who reads only these knows whether to ship."""
    asked = report.ratio.asked if report.ratio else None
    yield "Parameters", _change(report.parameters) + _asked(asked)
    fewer = "" if report.macs_ratio is None else f" ({report.macs_ratio:.2f}x fewer)"
    of_macs = report.plan.get("asked_macs") if report.plan else None
    yield "MACs", _change(report.macs) + _asked(of_macs) + fewer
    yield from _quality_lines(report.metric, report.quality)
    yield from _detail_lines(report)
    yield "Receipt", _receipt_line(report.receipt)
    yield "Parity", _parity_line(report.parity)
    yield from _latency_lines(report.latency_ms)
    yield "Speed-up", _speedup_line(report.speedup, report.macs_ratio, report.provider) + _asked_speed(report)
    yield from _side_by_side_lines("Files", report.metric, report.int8)
    yield from _side_by_side_lines("In fp16", report.metric, report.fp16)
    yield "Written", _files_line(report.files)


def _asked(share: float | None) -> str:
    return "" if share is None else f" (asked {_percent(share, 2)})"


def _change(counts: Counts | None) -> str:
    if counts is None:
        return "not measured"
    removed = "" if counts.removed is None else f", {_percent(counts.removed, 2)} removed"
    return f"{counts.before:,} -> {counts.after:,}{removed}"


_ABSENT = {
    "after removal": "not measured after removal",
    "after repair": "not repaired",
    "after fine-tuning": "not fine-tuned",
}
"""What is said of a stage that was not measured."""


def _quality_lines(metric: Metric | None, quality: Stages) -> Iterator[tuple[str, str]]:
    if metric is None or quality == Stages():
        yield "Quality", "not measured"
        return
    told = [
        _ABSENT.get(stage, "") if value is None else f"{metric.shown(value)} {stage}"
        for stage, value in quality.named().items()
    ]
    said = [one for one in told if one]
    lines = [", ".join(said[start : start + 2]) for start in range(0, len(said), 2)]
    if quality.last is not None and quality.original is not None:
        lines[-1] += f" ({metric.change(quality.original, quality.last)})"
    yield from zip([_title(metric.name), *[""] * len(lines)], lines, strict=False)


def _title(name: str) -> str:
    """With a capital, unless it has one, and short enough to stand before its line."""
    return name if name != name.lower() or len(name) > 11 else name.capitalize()


def _detail_lines(report: Report) -> Iterator[tuple[str, str]]:
    """Further figures, and the class that lost most: what one number hides."""
    if report.metric is None:
        return
    figures = [
        f"{name} {report.metric.shown(figure.original)}"
        if figure.compressed == figure.original or figure.compressed is None
        else f"{name} {report.metric.shown(figure.original)} -> {report.metric.shown(figure.compressed)}"
        for name, figure in report.details.items()
    ]
    worst = max(report.classes, key=lambda one: one.lost, default=None)
    if worst is not None and worst.lost > 0:
        share = f"{_percent(worst.original)} -> {_percent(worst.compressed)} of {worst.support:,}"
        figures.append(f"class {worst.number} lost most: {share}")
    yield from (("", figure) for figure in figures)


def _receipt_line(receipt: ReceiptCounts | None) -> str:
    if receipt is None:
        return "not measured"
    counted = receipt.counted()
    if len(set(counted.values())) == 1:
        ways = "three ways agree" if len(counted) == 3 else f"counted from {', '.join(counted)} only"
        return f"{ways}: {receipt.modules:,} parameters"
    modules, export = receipt.modules, receipt.export
    if modules == receipt.tensors and export is not None and export < modules:
        # a checked export lacks nothing but layers that never run
        return f"modules and tensors agree: {modules:,} parameters; {export:,} of them are exported"
    return "COUNTS DIFFER: " + ", ".join(f"{way} {n:,}" for way, n in counted.items())


def _parity_line(parity: Parity | None) -> str:
    if parity is None:
        return "not measured"
    same = "" if parity.top1 is None else f", top-1 same on {_percent(parity.top1)}"
    return f"differs by at most {parity.max_abs:.1e} ({parity.max_rel:.1e} relative){same}"


def _latency_lines(latencies: Latencies | None) -> Iterator[tuple[str, str]]:
    yield "Original", _latency_line(latencies.original if latencies else None)
    yield "Pruned", _latency_line(latencies.pruned if latencies else None)


def _latency_line(times: Latency | None) -> str:
    if times is None:
        return "latency not measured"
    p99 = "not measured" if times.p99 is None else f"{times.p99:#.4g} ms"
    return f"median {times.median:#.4g} ms, p90 {times.p90:#.4g} ms, p99 {p99} ({times.runs:,} runs)"


def _speedup_line(speedup: float | None, macs_ratio: float | None, provider: str | None) -> str:
    if speedup is None:
        return "not measured"
    promised = "" if macs_ratio is None else f" (MACs ratio {macs_ratio:.2f}x)"
    return f"{speedup:.2f}x{promised} on {provider or 'an unknown provider'}"


def _asked_speed(report: Report) -> str:
    """What was asked for, where it was speed."""
    said = [
        f"{report.settings[name]:g}{unit}"
        for name, unit in (("speedup", "x"), ("latency", " ms"))
        if report.settings.get(name) is not None
    ]
    return f", asked {' and '.join(said)}" if said else ""


def _side_by_side_lines(
    title: str, metric: Metric | None, found: SideBySide | HalfSideBySide | None
) -> Iterator[tuple[str, str]]:
    """What each of the four files is, a line each."""
    if found is None or metric is None:
        return
    for first, (name, one) in enumerate(found.named().items()):
        size = f"{one.bytes / 1e6:#.3g} MB"
        same = "" if one.agreement is None else f", {_percent(one.agreement)} same"
        figures = f"{size}, {metric.shown(one.quality)}{same}, {one.latency_ms.median:#.3g} ms"
        yield "" if first else title, f"{name}: {figures} ({one.speedup:.2f}x)"


def _files_line(files: Sequence[str]) -> str:
    """The names; where all begin alike, the stem is said once."""
    if not files:
        return "nothing"
    stem = str(PurePath(files[0]).with_suffix(""))
    if not all(name.startswith(f"{stem}.") for name in files):
        return ", ".join(files)
    return ", ".join([files[0], *(name.removeprefix(stem) for name in files[1:])])


def _percent(share: float | None, digits: int = 1) -> str:
    return "not measured" if share is None else f"{100 * share:.{digits}f} %"
