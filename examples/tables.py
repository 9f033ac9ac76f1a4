"""docs/results.md out of the rows of the experiments."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job_tables import job_table

INTRODUCTION = """\
# Results

Made by `python examples/NAME.py table` from the files in `examples/results/`, one row a run, each with its
date, machine and versions. Channels are removed physically, and "removed" is the share of *all* parameters of
the network that went; "MACs" is the share of the multiply-accumulate operations that went with them: a plan
that leaves more of those has it easier. Accuracies are of the whole test split, in percent, mean ± standard
deviation over the seeds; the network of the last epoch counts, and nothing was chosen on the test split.

"uniform" takes the same share of every layer, so that all criteria have exactly the same shape and count.
"global" puts one threshold over all layers: nats per cost for "gaussian, backward", which is what the command
does, and each layer's scores over their mean for the others. "global, MACs of uniform" is that threshold with
a `--macs-ratio` that asks for as many MACs to go as with uniform widths. Every criterion gets the same
images, the same repair and the same training. The columns: right after removal, after the repair without any
training, and after fine-tuning where it was run. The commands stand at the end of this page.
"""

Row = dict[str, Any]


def write(folder: Path, target: Path) -> Path:
    """Write the page; returns where."""
    parts = [INTRODUCTION]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if "experiment" in content:
            parts.append(section(content))
        elif "job" in content:
            parts.append(job_section(content))
    notes = folder / "notes.md"
    if notes.exists():
        parts.append(notes.read_text())
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text("\n".join(parts))
    temporary.replace(target)
    return target


def section(content: dict[str, Any]) -> str:
    rows: list[Row] = content["rows"]
    lines = [f"## {content['title']}", ""]
    bases = [100 * base for base in {row["seed"]: row["accuracy"]["original"] for row in rows}.values()]
    if len(set(bases)) > 1:
        lines += [f"Base: {summary(bases)} ({counted(len(bases), 'seed')}). {made(rows)}", ""]
    elif bases:  # one checkpoint for all seeds
        lines += [f"Base: {summary(bases[:1])}. {made(rows)}", ""]
    for ratio in sorted({row["ratio"] for row in rows}):
        for epochs in sorted({row["epochs"] for row in rows if row["ratio"] == ratio}):
            some = [row for row in rows if (row["ratio"], row["epochs"]) == (ratio, epochs)]
            training = f"{counted(epochs, 'epoch')} of fine-tuning" if epochs else "no training"
            lines += [f"### {ratio:.1%} asked, {training}", "", *table(some), ""]
    if content.get("published"):
        lines += ["Published:", "", "| method | removed | accuracy |", "|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in content["published"]]
    return "\n".join([*lines, ""])


def job_section(content: dict[str, Any]) -> str:
    rows: list[Row] = content["rows"]
    metric = rows[0]["metric"]
    lines = [f"## {content['title']}", "", f"{metric[0].upper()}{metric[1:]}, in percent. {made(rows)}", ""]
    return "\n".join([*lines, *job_table(rows), ""])


def table(rows: Sequence[Row]) -> list[str]:
    """One line per criterion, allocation and repair, best first."""
    grouped: dict[tuple[str, str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["criterion"], row["allocation"], row["repair"]].append(row)
    last = "finetuned" if any("finetuned" in row["accuracy"] for row in rows) else "repaired"
    order = sorted(grouped, key=lambda key: -statistics.mean(values(grouped[key], last) or [0.0]))
    lines = [
        "| criterion | allocation | repair | removed | MACs | nothing done | repaired | fine-tuned | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for criterion, allocation, repair in order:
        some = grouped[criterion, allocation, repair]
        removed = statistics.mean(row["removed"] for row in some)
        macs = statistics.mean(1 - row["macs"][1] / row["macs"][0] for row in some)
        stages = [summary(values(some, stage)) for stage in ("pruned", "repaired", "finetuned")]
        lines.append(
            f"| {criterion} | {allocation} | {'yes' if repair else 'no'} | {removed:.2%} | {macs:.1%} | "
            f"{' | '.join(stages)} | {len(some)} |"
        )
    return lines


def values(rows: Sequence[Row], stage: str) -> list[float]:
    return [100 * row["accuracy"][stage] for row in rows if stage in row["accuracy"]]


def summary(figures: Sequence[float]) -> str:
    if not figures:
        return ""
    mean = f"{statistics.mean(figures):.2f}"
    return f"{mean} ± {statistics.stdev(figures):.2f}" if len(figures) > 1 else mean


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def made(rows: Sequence[Row]) -> str:
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    where = "; ".join(sorted({row["device"] for row in rows}))
    versions = "; ".join(sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows}))
    return f"Run {when} on {where}, with {versions}."
