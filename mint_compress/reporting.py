"""What one run did, as one object: filled stage by stage, printed to a person, written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

FORMAT = 1
"""Version of the JSON; it rises when a key changes its meaning or goes away."""

_TIMES = ("median", "p90", "p99", "runs")
_KEYS: dict[str, tuple[str, ...]] = {
    "ratio": ("asked", "removed"),
    "parameters": ("before", "after"),
    "macs": ("before", "after"),
    "accuracy": ("original", "pruned", "repaired", "finetuned"),
    "validation": ("original", "compressed"),
    "receipt": ("modules", "tensors", "export"),
    "parity": ("max_abs", "max_rel", "top1"),
    "latency_ms": ("original", "pruned"),
}


class LayerChange(TypedDict):
    """Parameters of one layer pair, named as in the paper's tables."""

    pair: str
    before: int
    after: int


class LeftAlone(TypedDict):
    """A channel group that kept its width, and why."""

    group: str
    reason: str


def as_text(result: object) -> str:
    """What rich prints of ``result`` on a terminal of 80 columns without colours."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(result)
    return capture.get()


@dataclass(frozen=True)
class Report:
    """Everything a run found out; the fields are the keys of ``OUT.json``.

    What was not measured is None, at every depth: a nested mapping may be given in part, and
    always has all its keys afterwards. Stages fill it in with ``dataclasses.replace``.

    Parameters
    ----------
    machine, settings, data
        Where it ran, the arguments of ``compress``, and the data: their splits, shape and normalisation.
    ratio
        ``asked`` and ``removed`` share of the parameters, in [0, 1]. A share of the MACs that was asked
        for is in the ``plan``.
    parameters, macs
        Counts ``before`` and ``after``; MACs are of one sample.
    accuracy
        Shares in [0, 1] of the ``original`` and the ``pruned``, ``repaired``, ``finetuned`` model.
        On the test split.
    validation
        Accuracy of the ``original`` and the ``compressed`` model on the validation split: what to compare
        settings by.
    receipt
        Parameters counted from ``modules``, from ``tensors`` written and from the ``export``.
    parity
        ``max_abs`` and ``max_rel`` difference between PyTorch and the export, and the share of
        samples whose ``top1`` class is the same.
    latency_ms
        Of the ``original`` and the ``pruned`` export: ``median``, ``p90``, ``p99`` (ms), ``runs``.
    speedup, macs_ratio
        Latency and MACs of the original over those of the pruned model.
    sha256
        File written -> its hash. The report itself cannot be among them.
    notes
        What was assumed or capped, one sentence each.

    Raises
    ------
    ValueError
        When a nested mapping has a key that the JSON does not know.
    """

    format: int = FORMAT
    model: str | None = None
    seed: int | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    ratio: Mapping[str, float | None] = field(default_factory=dict)
    parameters: Mapping[str, int | None] = field(default_factory=dict)
    macs: Mapping[str, int | None] = field(default_factory=dict)
    accuracy: Mapping[str, float | None] = field(default_factory=dict)
    validation: Mapping[str, float | None] = field(default_factory=dict)
    layers: Sequence[LayerChange] = ()
    left_alone: Sequence[LeftAlone] = ()
    receipt: Mapping[str, int | None] = field(default_factory=dict)
    parity: Mapping[str, float | None] = field(default_factory=dict)
    latency_ms: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    speedup: float | None = None
    macs_ratio: float | None = None
    provider: str | None = None
    plan: Mapping[str, Any] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, keys in _KEYS.items():
            object.__setattr__(self, name, _complete(name, getattr(self, name), keys))
        times = {side: _complete(side, self.latency_ms[side], _TIMES) for side in _KEYS["latency_ms"]}
        object.__setattr__(self, "latency_ms", times)

    @property
    def files(self) -> tuple[str, ...]:
        """The files written: those with a hash, and the report that lies beside the tensors."""
        written = [name for name in self.sha256 if name != self.model]
        reports = [
            str(PurePath(name).with_suffix(".json")) for name in written if name.endswith(".safetensors")
        ]
        return (*written, *reports)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers under the keys of ``OUT.json``, in a fixed order."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_json(self) -> str:
        """``to_dict`` as strict JSON: null stands for what was not measured and for non-finite numbers."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        for note in self.notes:
            yield Text(f"Note: {note}")
        if self.layers:
            yield _layer_table(self.layers)
        if self.left_alone:
            yield Text("Left alone:")
        for line in left_alone_lines(self.left_alone):
            yield Padding(Text(line), (0, 0, 0, 2))
        yield Text()
        for title, line in self._summary():
            text = Text(f"{title:<12}", style="bold")
            text.append(line, style="not bold")
            yield text

    def _summary(self) -> Iterator[tuple[str, str]]:
        """At most ten (title, line) pairs: who reads only these knows whether to ship."""
        yield "Parameters", _change(self.parameters) + _asked(self.ratio["asked"])
        fewer = "" if self.macs_ratio is None else f" ({self.macs_ratio:.2f}x fewer)"
        of_macs = self.plan.get("asked_macs") if self.plan else None
        yield "MACs", _change(self.macs) + _asked(of_macs) + fewer
        yield from _accuracy_lines(self.accuracy)
        yield "Receipt", _receipt_line(self.receipt)
        yield "Parity", _parity_line(self.parity)
        yield from _latency_lines({side.capitalize(): times for side, times in self.latency_ms.items()})
        yield "Speed-up", _speedup_line(self.speedup, self.macs_ratio, self.provider)
        yield "Written", _files_line(self.files)


def _asked(share: float | None) -> str:
    return "" if share is None else f" (asked {_percent(share, 2)})"


def _latency_lines(times: Mapping[str, Mapping[str, float | None]]) -> Iterator[tuple[str, str]]:
    for title, t in times.items():
        if t["median"] is None:
            yield title, "latency not measured"
            continue
        p90, p99 = ("not measured" if t[p] is None else f"{t[p]:#.4g} ms" for p in ("p90", "p99"))
        yield title, f"median {t['median']:#.4g} ms, p90 {p90}, p99 {p99} ({t['runs'] or 0:,} runs)"


def _speedup_line(speedup: float | None, macs_ratio: float | None, provider: str | None) -> str:
    if speedup is None:
        return "not measured"
    promised = "" if macs_ratio is None else f" (MACs ratio {macs_ratio:.2f}x)"
    return f"{speedup:.2f}x{promised} on {provider or 'an unknown provider'}"


def _layer_table(layers: Sequence[LayerChange]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("Layer pair", overflow="fold")
    for title in ("Parameters before", "after", "removed"):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in layers:
        before, after = layer["before"], layer["after"]
        removed = _percent(1 - after / before) if before else "-"
        # a Text is taken as it is: brackets in a layer's name are not markup
        table.add_row(Text(layer["pair"]), f"{before:,}", f"{after:,}", removed)
    return table


def left_alone_lines(left_alone: Sequence[LeftAlone]) -> Iterator[str]:
    """A line for each cause, with its groups, and with the details in brackets if all have the same."""
    causes: dict[str, list[LeftAlone]] = {}
    for entry in left_alone:
        causes.setdefault(entry["reason"].partition(" (")[0], []).append(entry)
    for cause, entries in causes.items():
        reasons = {entry["reason"] for entry in entries}
        said = cause if len(reasons) > 1 else reasons.pop()
        count = f" ({len(entries)} groups)" if len(entries) > 1 else ""
        yield f"{said}{count}: {', '.join(entry['group'] for entry in entries)}"


def _accuracy_lines(accuracy: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    if all(value is None for value in accuracy.values()):
        yield "Accuracy", "not measured"
        return
    original, pruned, repaired, finetuned = (accuracy[key] for key in _KEYS["accuracy"])
    yield "Accuracy", f"{_percent(original, 2)} original, {_percent(pruned, 2)} after removal"
    last = next((value for value in (finetuned, repaired, pruned) if value is not None), None)
    change = "" if last is None or original is None else f" ({100 * (last - original):+.2f} points)"
    repair = "not repaired" if repaired is None else f"{_percent(repaired, 2)} after repair"
    tuning = "not fine-tuned" if finetuned is None else f"{_percent(finetuned, 2)} after fine-tuning"
    yield "", f"{repair}, {tuning}{change}"


def _receipt_line(receipt: Mapping[str, int | None]) -> str:
    counted = {way: n for way, n in receipt.items() if n is not None}
    if not counted:
        return "not measured"
    if len(set(counted.values())) == 1:
        ways = "three ways agree" if len(counted) == 3 else f"counted from {', '.join(counted)} only"
        return f"{ways}: {next(iter(counted.values())):,} parameters"
    modules, tensors, export = (receipt[key] for key in _KEYS["receipt"])
    if modules is not None and export is not None and modules == tensors and export < modules:
        # a checked export lacks nothing but layers that never run
        return f"modules and tensors agree: {modules:,} parameters; {export:,} of them are exported"
    return "COUNTS DIFFER: " + ", ".join(f"{way} {n:,}" for way, n in counted.items())


def _parity_line(parity: Mapping[str, float | None]) -> str:
    absolute, relative, top1 = (parity[key] for key in _KEYS["parity"])
    if absolute is None or relative is None:
        return "not measured"
    same = "" if top1 is None else f", top-1 same on {_percent(top1)}"
    return f"differs by at most {absolute:.1e} ({relative:.1e} relative){same}"


def _files_line(files: Sequence[str]) -> str:
    """The names; when they differ in the suffix only, the stem is said once."""
    if not files:
        return "nothing"
    first = PurePath(files[0])
    stems = {name[: -len(PurePath(name).suffix)] if PurePath(name).suffix else name for name in files}
    if len(stems) > 1 or not first.suffix:
        return ", ".join(files)
    return ", ".join([files[0], *(PurePath(name).suffix for name in files[1:])])


def _change(counts: Mapping[str, int | None]) -> str:
    before, after = counts["before"], counts["after"]
    if before is None or after is None:
        return "not measured"
    removed = f", {_percent(1 - after / before, 2)} removed" if before else ""
    return f"{before:,} -> {after:,}{removed}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "not measured" if share is None else f"{100 * share:.{digits}f} %"


def _complete(name: str, given: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    given = given or {}
    unknown = set(given) - set(keys)
    if unknown:
        raise ValueError(f"{name} has no key {sorted(unknown)[0]!r}. Its keys: {', '.join(keys)}.")
    return {key: given.get(key) for key in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
