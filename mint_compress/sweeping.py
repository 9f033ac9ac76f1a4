"""A grid of settings, one compression each: what a ratio costs in quality, as CSV, JSON and a plot."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from mint_compress import processes
from mint_compress.compression import compress
from mint_compress.errors import MintError
from mint_compress.files import replacing
from mint_compress.preflight import check_sweep
from mint_compress.progress import Progress
from mint_compress.provenance import identity, named_settings
from mint_compress.reporting import Report
from mint_compress.reporting.records import Metric, Stages
from mint_compress.settings import Settings, combinations

SWEEP_FORMAT = 2
STAGES = tuple(one.name for one in fields(Stages))


@processes.sharing()
def sweep(
    model: nn.Module | str | os.PathLike[str],
    data: str,
    grid: Mapping[str, Sequence[Any]],
    output: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
    done: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Compress with every combination of a grid, one row each.

    Parameters
    ----------
    model, data
        As for ``compress``.
    grid
        Option -> the values to try, ``{"ratio": (0.5, 0.75), "blocks": (8, 15)}``; every combination is
        a row.
        :data:`mint_compress.settings.GRID` lists the options.
    output
        The CSV file. Beside it the rows are kept as JSON, and drawn (SVG) where matplotlib is
        installed. All are written anew after every row; a row that is there, made with the same model,
        data, settings and version, is not made again, unless it failed.
    progress
        Called as ("sweep", rows done, rows).
    done
        Called with every row when it is made.
    settings, options
        As for ``compress``, the same for all rows.

    Returns
    -------
    list of dict
        The grid's rows: the settings, ``removed`` and ``macs_removed`` as shares, ``parameters``,
        ``metric``, its value on the test split after each stage (``quality``), ``validation``, the value to
        choose by, ``seconds``, and ``error`` where a setting cannot be met.

    Raises
    ------
    MintError
        As for ``compress``, when it would fail for every row alike; files of the output's name that are
        no sweep's.
    """
    base = (settings or Settings()).replace(**options)
    check_sweep(model, data, base, grid, output)
    csv_path = Path(output)
    json_path = csv_path.with_suffix(".json")
    rows = _read(json_path)
    for path in (csv_path, csv_path.with_suffix(".svg")):
        if not rows and path.exists():
            raise MintError(f"{path} is there and is no sweep's. Give another name with -o.")
    common = {"model": identity(model), "data": identity(data), "version": version("mint-compress")}
    chosen = list(combinations(base, grid))
    # as they come back from the file: tuples become lists
    wanted = [json.loads(json.dumps({**common, **named_settings(one)})) for one in chosen]
    for number, (key, one) in enumerate(zip(wanted, chosen, strict=True)):
        if progress:
            progress("sweep", number, len(wanted))
        if (there := _find(rows, key)) is None or there["error"]:
            row = {"settings": key, **_one(model, data, one)}
            rows = [*(other for other in rows if other["settings"] != key), row]
            if processes.is_main():
                _write(rows, json_path, csv_path)
            if done:
                done(row)
    if progress:
        progress("sweep", len(wanted), len(wanted))
    found = [made for key in wanted if (made := _find(rows, key)) is not None]
    if all(row["error"] for row in found):
        raise MintError(found[0]["error"])
    if processes.is_main():
        draw(found, csv_path.with_suffix(".svg"))
    return found


def _find(rows: Sequence[dict[str, Any]], key: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((row for row in rows if row["settings"] == key), None)


def _one(model: Any, data: str, settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        _, report = compress(model, data, settings=settings)
    except MintError as error:  # such as a ratio that this upper limit does not allow
        return {"error": str(error), "seconds": round(time.perf_counter() - start, 1)}
    return {"error": None, **_measured(report), "seconds": round(time.perf_counter() - start, 1)}


def _measured(report: Report) -> dict[str, Any]:
    assert report.ratio and report.parameters and report.macs and report.metric, "every run is measured"
    return {
        "removed": report.ratio.removed,
        "macs_removed": 1 - report.macs.after / max(report.macs.before, 1),
        "parameters": report.parameters.after,
        "metric": asdict(report.metric),
        "quality": asdict(report.quality),
        "validation": report.validation.compressed,
    }


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        if content["format"] != SWEEP_FORMAT:
            raise MintError(
                f"{path} has format {content['format']!r}; this version reads {SWEEP_FORMAT}. "
                "Give another name with -o."
            )
        return list(content["rows"])
    except MintError:
        raise
    except (ValueError, KeyError, TypeError):
        raise MintError(f"{path} is there and is no sweep. Give another name with -o.") from None


def _write(rows: Sequence[dict[str, Any]], json_path: Path, csv_path: Path) -> None:
    with replacing(json_path) as temporary:
        temporary.write_text(json.dumps({"format": SWEEP_FORMAT, "rows": rows}, indent=1) + "\n")
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    with replacing(csv_path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    measured = {k: v for k, v in row.items() if k not in ("settings", "metric", "quality")}
    metric = {f"metric_{k}" if k != "name" else "metric": v for k, v in row.get("metric", {}).items()}
    # the setting of this name says what was asked for, and gives way to what was measured
    return {**row["settings"], **measured, **metric, **row.get("quality", {})}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row: what went in percent, the metric after each stage on the test split; the settings."""
    line = "{:>8} {:>7} {:>11} {:>9} {:>7} {:>9} {:>7} {:>10}  {}"
    lines = [line.format("removed", "MACs", "validation", *STAGES, "settings")]
    for row in rows:
        label = ", ".join([*_shares(row["settings"]), _label(row["settings"])])
        if row["error"]:
            lines.append(f"{label}: {row['error']}")
            continue
        gone = (f"{100 * row[name]:.2f}" for name in ("removed", "macs_removed"))
        values = (row["validation"], *(row["quality"].get(stage) for stage in STAGES))
        cells = ("" if value is None else _plain(row["metric"], value) for value in values)
        lines.append(line.format(*gone, *cells, label))
    return "\n".join(lines)


def _plain(metric: Mapping[str, Any], value: float) -> str:
    """As the metric shows it, without the unit."""
    return Metric(**metric).shown(value).removesuffix(metric["unit"]).strip()


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """The metric on the validation split against the parameters removed, one line per setting but the shares.

    Who chooses by it has not looked at the test split.

    Returns
    -------
    bool
        Whether it was drawn: matplotlib may be missing, and there may be nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines: dict[str, list[tuple[float, float]]] = {}
    name = unit = ""
    for row in rows:
        if row["error"] is None and row["validation"] is not None:
            name, unit = row["metric"]["name"], row["metric"]["unit"]
            point = (100 * row["removed"], row["validation"] * (100 if unit == "%" else 1))
            lines.setdefault(_label(row["settings"]), []).append(point)
    if not lines:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_xlabel("parameters removed, %")
    axes.set_ylabel(f"{name} on the validation split" + (f", {unit}" if unit else ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    return True


def _shares(settings: Mapping[str, Any]) -> list[str]:
    """What was asked to go."""
    asked = (("ratio", settings["ratio"]), ("macs-ratio", settings["macs_ratio"]))
    return [f"{name} {share:g}" for name, share in asked if share is not None]


def _label(settings: Mapping[str, Any]) -> str:
    parts = [settings["estimator"]]
    if settings["samples_per_class"]:
        parts.append(f"{settings['samples_per_class']} a class")
    if settings["blocks"]:
        parts.append(f"{settings['blocks']} blocks")
    return ", ".join([*parts, f"limit {settings['upper_limit']:g}", f"seed {settings['seed']}"])
