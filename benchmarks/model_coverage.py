"""Which public architectures can be pruned, trained on, saved, loaded and exported, with random weights.

    python benchmarks/model_coverage.py                    # run what has no result yet, then write the table
    python benchmarks/model_coverage.py --only '*resnet*' --again
    python benchmarks/model_coverage.py --table            # the table alone

Every torchvision classifier, segmentation model and detector (whose heads' raw outputs are what is
exported), the smallest YOLO of each kind and job of the ultralytics package, and of timm the first pretrained
entry of each module of ``timm.list_modules()`` under 100 M parameters; torchvision's above 200 M are listed
as not run. Each runs in a process of its own with a limit on processor time (one thread; what else the
machine does makes no difference) and on memory, at the smallest input that it accepts; detectors that would
enlarge their images look at 128x128. "Worked" means: the channel groups are
found, 50 % of the parameters are really gone after scoring, planning, removal and repair (``--estimator
random`` draws which channels go, which takes less time), the forward pass and a training step stay finite,
the saved file loads again to the same tensors and outputs, the ONNX export has a dynamic batch, its
parameters count the same and its outputs agree with PyTorch. Faults of our own come out where they happen.
What works, and is analysed quickly, is also analysed by both engines that find channel groups
(``--skip-engines``: not), to see whether they say the same.

Results: one JSON line a model in benchmarks/results/coverage.jsonl; the last line of a model counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "coverage.jsonl"
TABLE = HERE.parent / "docs" / "coverage.md"
RATIO = 0.5
TOO_LARGE = 200_000_000
LARGEST_OF_TIMM = 100_000_000
PATIENCE = 6
"""Wall-clock seconds for each second of the limit on processor time: ends what sleeps."""
YOLO = {
    "yolov5": ("",),
    **dict.fromkeys(("yolov8", "yolo11", "yolo12", "yolo26"), ("", "-seg", "-pose", "-cls")),
}
"""Kind -> jobs of the networks of ultralytics: detect, segment, pose, classify."""
PACKAGES = ("torch", "torchvision", "timm", "ultralytics", "torch-pruning", "onnxruntime-gpu", "onnxruntime")
Record = dict[str, Any]


class Choice(NamedTuple):
    """One architecture; with ``not_run`` the reason why it is only listed."""

    name: str
    family: str
    not_run: str | None = None


# The list of models


def chosen(only: Sequence[str], known: dict[str, Record]) -> Iterator[Choice]:
    """All models that the rule names and a pattern matches; those of timm are measured one by one."""

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in only)

    yield from (c for c in (*_of_torchvision(), *_of_ultralytics()) if wanted(c.name))
    import timm

    recorded = {r["family"]: Choice(r["name"], r["family"], r.get("not_run")) for r in known.values()}
    for module in timm.list_modules():
        names = timm.list_models(module=module, pretrained=True)
        if any(wanted(f"timm:{name}") for name in names):
            choice = recorded.get(f"timm {module}") or _first_small(module, names)
            if wanted(choice.name):
                yield choice


def _of_torchvision() -> Iterator[Choice]:
    from torchvision import models

    for module in (models, models.segmentation, models.detection):
        for name in models.list_models(module=module):
            family = models.get_model_builder(name).__module__.rpartition(".")[2]
            size = models.get_model_weights(name).DEFAULT.meta["num_params"]
            why = f"{size / 1e6:.0f} M parameters" if size > TOO_LARGE else None
            yield Choice(f"torchvision:{name}", f"torchvision {family}", why)


def _of_ultralytics() -> Iterator[Choice]:
    for kind, jobs in YOLO.items():
        for job in jobs:
            yield Choice(f"ultralytics:{kind}n{job}", f"ultralytics {kind}")


def _first_small(module: str, names: Sequence[str]) -> Choice:
    """The first of these with fewer than 100 M parameters."""
    for name in names:
        if _parameters(name) < LARGEST_OF_TIMM:
            return Choice(f"timm:{name}", f"timm {module}")
    return Choice(f"timm:{names[0]}", f"timm {module}", "no entry under 100 M parameters")


def _parameters(name: str) -> int:
    import timm
    import torch

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError):  # some compute with real tensors while they are built
        model = timm.create_model(name, pretrained=False)
    return sum(p.numel() for p in model.parameters())


# All models


def supervise(
    choice: Choice, estimator: str, seconds: float, gigabytes: float, more: Sequence[str] = ()
) -> Record:
    """Run one model in a process and put together what it found, or why it was stopped."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as errors:
        command = [sys.executable, str(HERE / "one_model.py"), choice.name, folder, estimator, *more]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MINT_COMPRESS_STRICT": "1"},
        )  # fmt: skip
        stopped, peak = watch(process, seconds, gigabytes)
        record: Record = {
            "name": choice.name,
            "family": choice.family,
            "worked": False,
            "estimator": estimator,
        }
        log = Path(folder) / "log.jsonl"
        for line in log.read_text().splitlines() if log.exists() else ():
            record |= json.loads(line)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
    done = record.pop("done", False)  # from then on engines are compared, which may be cut short
    if stopped and not done:
        record["error"] = stopped
    elif "error" not in record and not done:
        record["error"] = f"the process ended with status {process.returncode}: {last[:300]}"
    elif "error" not in record and record["removed"] < RATIO:
        record["error"] = f"{record['reachable']:.1%} at most can go; all else worked at that ratio"
    record["worked"] = "error" not in record
    if record["worked"]:
        record.pop("step")
    spent, today = round(time.perf_counter() - start, 1), f"{datetime.now(UTC):%Y-%m-%d}"
    return record | {"total_seconds": spent, "peak_gb": round(peak, 2), "date": today}


def watch(process: subprocess.Popen[Any], seconds: float, gigabytes: float) -> tuple[str | None, float]:
    """Wait; kill the process past a limit. Returns the reason for that, and the peak memory in GB."""
    import psutil  # type: ignore[import-untyped]

    peak, reason, began = 0.0, None, time.perf_counter()
    watched = psutil.Process(process.pid)
    while process.poll() is None and reason is None:
        try:
            peak = max(peak, watched.memory_info().rss / 1e9)
            spent = watched.cpu_times()
        except psutil.Error:
            break
        if spent.user + spent.system > seconds:
            reason = f"stopped after {seconds:g} s"
        elif time.perf_counter() - began > PATIENCE * seconds:
            reason = f"stopped after {PATIENCE * seconds:g} s, most of them idle"
        elif peak > gigabytes:
            reason = f"stopped at {gigabytes:g} GB of memory"
        time.sleep(0.2)
    if reason:
        process.kill()
    process.wait()
    return reason, peak


def results() -> dict[str, Record]:
    """Model -> its last result, and what the engines said when they were last compared."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found: dict[str, Record] = {}
    for record in map(json.loads, lines):
        before = found.get(record["name"], {})
        found[record["name"]] = {**{k: v for k, v in before.items() if k == "engines"}, **record}
    return found


def run_all(options: argparse.Namespace) -> None:
    """Run every model that has no result, and append the results as they come."""
    known = results()
    RESULTS.parent.mkdir(exist_ok=True)
    versions = {p: _version(p) for p in PACKAGES if _version(p)}
    more = ["--skip-engines"] if options.skip_engines else []

    def work(choice: Choice) -> None:
        if choice.not_run:
            record: Record = choice._asdict()
        else:
            limits = options.limit_seconds, options.limit_gigabytes
            record = supervise(choice, options.estimator, *limits, more)
            record["versions"] = versions
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        said = choice.not_run or record.get("error") or "worked"
        print(f"{choice.name}: {said} ({record.get('total_seconds', 0)} s)", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        todo = (c for c in chosen(options.only, known) if options.again or c.name not in known)
        for _ in pool.map(work, todo):
            pass


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


# The table


def write_table() -> None:
    """Write docs/coverage.md from the results."""
    records = sorted(
        results().values(), key=lambda r: (r["family"].startswith("timm"), r["family"], r["name"])
    )
    ran = [r for r in records if not r.get("not_run")]
    worked = [r for r in ran if r["worked"]]
    families: dict[str, list[Record]] = {}
    for record in ran:
        families.setdefault(record["family"], []).append(record)
    lines = [*_head(ran, worked), *(_row(name, own) for name, own in families.items())]
    if len(worked) < len(ran):
        lines += ["", "## What did not work", "", "| model | input | step | reason |", "|---|---|---|---|"]
    lines += [
        f"| {r['name']} | {r.get('input', '')} | {r.get('step', '')} | {_cell(r['error'])} |"
        for r in ran
        if not r["worked"]
    ]
    lines += _engines(ran)
    lines += ["", "## Not run", "", *(f"- {r['name']}: {r['not_run']}" for r in records if r.get("not_run"))]
    TABLE.parent.mkdir(exist_ok=True)
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text("\n".join(lines).rstrip() + "\n")
    os.replace(temporary, TABLE)


def _head(ran: Sequence[Record], worked: Sequence[Record]) -> list[str]:
    versions = {f"{p} {v}" for r in ran for p, v in r.get("versions", {}).items()}
    dates = sorted({r["date"] for r in ran})
    share = f" ({len(worked) / len(ran):.0%})" if ran else ""
    when = f", {_range(dates, str)}" if dates else ""
    return [
        "# Coverage",
        "",
        "Written by `python benchmarks/model_coverage.py`, which says which models are run and what must",
        "work: in short, with random weights at the smallest input: 50 % of the parameters really gone, a",
        "training step, a saved file that loads again, and an ONNX export whose counts and outputs agree.",
        "",
        f"**{len(worked)} of {len(ran)} worked{share}**{when}; {', '.join(sorted(versions))}; CPU.",
        "",
        "Reachable: the share of the parameters that can go at most (`--upper-limit 0.95 --round-to 8`).",
        "",
        "| family | models | worked | prunable groups | reachable | the other groups |",
        "|---|---|---|---|---|---|",
    ]


def _row(family: str, own: Sequence[Record]) -> str:
    counted = [r for r in own if "groups" in r]
    counts = [sum(r[key] for r in counted) for key in ("prunable", "groups")]
    prunable = f"{counts[0]} of {counts[1]}" if counted else ""
    shares = [r["reachable"] for r in counted]
    reach = _range(shares, lambda share: f"{100 * share:.1f} %") if shares else ""
    others: Counter[str] = Counter()
    for record in counted:
        others.update(record["reasons"])
    why = "; ".join(f"{count} {reason}" for reason, count in others.most_common())
    good = sum(r["worked"] for r in own)
    return f"| {family} | {len(own)} | {good} | {prunable} | {reach} | {_cell(why)} |"


def _engines(ran: Sequence[Record]) -> list[str]:
    """Where Torch-Pruning's graph and the labels do not say the same."""
    compared = [r for r in ran if "engines" in r]
    other = [r for r in compared if r["engines"] != "agree"]
    if not compared:
        return []
    return [
        "",
        "## Two engines",
        "",
        f"Torch-Pruning's graph and the labels offer the same groups in {len(compared) - len(other)} of",
        f"{len(compared)} networks, when these were last compared. In the others, who is upheld where each",
        "group is proved by itself:",
        "",
        "| model | engines |",
        "|---|---|",
        *(f"| {r['name']} | {_cell(r['engines'])} |" for r in other),
    ]


def _range(values: Sequence[Any], shown: Callable[[Any], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Read the options."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument(
        "--only", nargs="+", default=["*"], help="patterns of names, as in 'torchvision:*' or '*ghost*'"
    )
    parser.add_argument("--again", action="store_true", help="also run what has a result")
    parser.add_argument("--estimator", default="gaussian", help="what scores the channels; random: nothing")
    parser.add_argument("--limit-seconds", type=float, default=3000, help="of processor time")
    parser.add_argument("--limit-gigabytes", type=float, default=13, help="of resident memory")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--skip-engines", action="store_true", help="do not compare the two that find groups")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md and run nothing")
    options = parser.parse_args()
    if not options.table:
        run_all(options)
    write_table()


if __name__ == "__main__":
    main()
