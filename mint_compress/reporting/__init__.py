"""What one run did, as one object: filled stage by stage, printed to a person, written as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mint_compress.errors import MintError
from mint_compress.reporting.plain_data import nulls, plain, read_record
from mint_compress.reporting.records import (
    BeforeAfter,
    ClassChange,
    Counts,
    DataFacts,
    Disagreement,
    HalfSideBySide,
    Latencies,
    LayerChange,
    LayerTime,
    LeftAlone,
    Machine,
    Metric,
    Parity,
    ReceiptCounts,
    Share,
    SideBySide,
    Stages,
    Trial,
)
from mint_compress.reporting.text import as_text, report_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

FORMAT = 2
"""Version of the JSON; it rises when a key changes its meaning or goes away."""
ACCURACY = "accuracy"
"""Name of the metric of a classifier: the share of the samples that it gets right."""

_KEPT: Mapping[str, type] = {
    "ratio": Share,
    "metric": Metric,
    "parameters": Counts,
    "macs": Counts,
    "receipt": ReceiptCounts,
    "parity": Parity,
    "latency_ms": Latencies,
}
"""Records whose keys the JSON has in any case: with null for each where there is no record."""


@dataclass(frozen=True)
class Report:
    """Everything a run found out; the fields are the keys of ``OUT.json``.

    What was not measured is None; in the JSON, a record that is None has its keys, each null. Stages fill
    it in with ``dataclasses.replace``.

    Attributes
    ----------
    format
        Of the JSON.
    model
        Path, or name of the class.
    seed, command, versions, machine, settings, data
        How it was made: the command line, the versions of the packages, where it ran, the arguments of
        ``compress``, and the data.
    ratio
        Of the parameters. A share of the MACs that was asked for is in the ``plan``.
    parameters, macs
        Totals; MACs are of one sample.
    task, metric
        What the network is for, and what its quality is measured in.
    quality
        The metric on the test split after each stage.
    validation
        The same on the validation split: what to compare settings by.
    details
        Further figures by name, such as the balanced accuracy.
    classes
        The metric of every class; empty where there are none.
    layers
        Weights per pair of layers, then everything else.
    left_alone
        Channel groups that stayed whole.
    receipt, parity, latency_ms
        What the checks of the export gave, and its times.
    speedup, macs_ratio
        Latency and MACs of the original over those of the pruned model.
    provider
        Of the runtime that was timed.
    int8, fp16
        The exports in float and in int8, or in half precision, side by side; None where that was not asked
        for, or, of fp16, where nothing here computes in it.
    trials
        The plans that were tried before this one was chosen, in that order; empty where none had to be.
    layer_ms
        Layers by their time in the runtime, the slowest first; empty unless the plan went by latency.
    disagreements
        Test samples on which the networks differ most; empty where no output was asked for.
    plan
        As ``PruningPlan.to_dict`` gives it.
    sha256
        File written -> its hash. The report itself cannot be among them.
    seconds
        Stage -> seconds that it took.
    notes
        What was assumed or capped, one sentence each.
    """

    format: int = FORMAT
    model: str | None = None
    seed: int | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Machine | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: DataFacts | None = None
    ratio: Share | None = None
    parameters: Counts | None = None
    macs: Counts | None = None
    task: str | None = None
    metric: Metric | None = None
    quality: Stages = field(default_factory=Stages)
    validation: BeforeAfter = field(default_factory=BeforeAfter)
    details: Mapping[str, BeforeAfter] = field(default_factory=dict)
    classes: tuple[ClassChange, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    receipt: ReceiptCounts | None = None
    parity: Parity | None = None
    latency_ms: Latencies | None = None
    speedup: float | None = None
    macs_ratio: float | None = None
    provider: str | None = None
    int8: SideBySide | None = None
    fp16: HalfSideBySide | None = None
    trials: tuple[Trial, ...] = ()
    layer_ms: tuple[LayerTime, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    plan: Mapping[str, Any] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> Stages:
        """The quality where it is measured in accuracy; elsewhere nothing was measured."""
        return self.quality if self.metric is not None and self.metric.name == ACCURACY else Stages()

    @property
    def files(self) -> tuple[str, ...]:
        """The files written: those with a hash, and the report and its page that lie beside the tensors."""
        written = [name for name in self.sha256 if name != self.model]
        tensors = [PurePath(name) for name in written if name.endswith(".safetensors")]
        reports = [str(path.with_suffix(ending)) for path in tensors for ending in (".json", ".html")]
        return (*written, *reports)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers under the keys of ``OUT.json``, in a fixed order."""
        absent: dict[str, Any] = {name: nulls(kind) for name, kind in _KEPT.items()}
        absent["machine"] = {}
        return {
            name: absent[name] if value is None and name in absent else value
            for name, value in plain(self).items()
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Report:
        """Read what :meth:`to_dict` gave; what is not there is None.

        Raises
        ------
        MintError
            Another format, a key that this version does not know, or a value that cannot be there.
        """
        if isinstance(data, Mapping) and data.get("format") == 1:
            data = _of_format_1(data)
        if isinstance(data, Mapping) and data.get("format") != FORMAT:
            raise MintError(
                f"The report has format {data.get('format')!r}; this version reads {FORMAT}. "
                "Update mint-compress."
            )
        return read_record(Report, data)

    def to_json(self) -> str:
        """``to_dict`` as strict JSON: null stands for what was not measured and for non-finite numbers."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """Read what :meth:`to_json` gave; see :meth:`from_dict`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise MintError("This is not a report (not JSON). Give the OUT.json of a run.") from None
        return Report.from_dict(data)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from report_text(self)


def _of_format_1(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same report in today's format: there was one metric only."""
    renamed = {"quality" if key == "accuracy" else key: value for key, value in data.items()}
    return {**renamed, "format": FORMAT, "metric": plain(Metric(ACCURACY, "%"))}
