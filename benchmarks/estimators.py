"""How fast the estimators are, beside what others offer: one table, one run.

    python benchmarks/estimators.py --output benchmarks/results/estimators.md

Every line is measured in turns (ours, peer, ours, peer) and shows medians. Lines about a GPU are left
out where there is none. The peers come with ``pip install -e .[bench]``.
"""

from __future__ import annotations

import datetime
import fnmatch
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import peers
import torch
from torch import Tensor

from mint_compress.estimators import Estimator
from mint_compress.estimators.backward import backward_elimination
from mint_compress.estimators.gaussian import gaussian
from mint_compress.estimators.gmi import gmi
from mint_compress.estimators.knn import knn
from mint_compress.estimators.mint import mint
from mint_compress.estimators.mst import cross_edges
from mint_compress.estimators.parametric import parametric

VGG16 = (
    *((64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)),
    *[(512, 512)] * 6,
    (512, 10),
)
"""Parents and children of its layer pairs, on CIFAR-10."""

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}


@dataclass(frozen=True)
class Sizes:
    """How large the work is; the second set only shows that everything runs."""

    rows: int = 2500
    width: int = 512
    group: int = 4
    trees: int = 64
    children: int = 128
    layers: tuple[tuple[int, int], ...] = VGG16


QUICK = Sizes(rows=240, width=32, trees=3, children=4, layers=((8, 16), (16, 10)))


@dataclass(frozen=True)
class Work:
    """Something to be timed, or a time that is known: a bound that follows from bandwidth."""

    name: str
    run: Callable[[], object] | None
    count: int = 1
    """Pairs in one run; the time is shown for one of them."""
    known: float | None = None
    """Seconds."""


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    ours: Work
    beside: tuple[Work, ...] = ()
    target: str = ""
    once: bool = False
    """Too long to be repeated."""


def draw(seed: int, *shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def layer(rows: int, parents: int, children: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Children and parents, single precision, as a layer's rectified activations depend on its input."""
    y = draw(0, rows, parents, device=device).relu()
    mixed = y @ draw(1, parents, children, device=device) / parents**0.5
    return (mixed + 0.3 * draw(2, rows, children, device=device)).relu(), y


def blocks(width: int, groups: int) -> Tensor:
    """Labels of contiguous, nearly equal groups."""
    return torch.arange(width) * groups // width


def gaussian_rows(size: Sizes) -> Iterator[Row]:
    x, y = layer(size.rows, size.width, size.width)
    products = Work("Gram products y'y, y'x alone", lambda: (y.T @ y, y.T @ x))
    width, groups = size.width, size.width // size.group
    labels = blocks(width, groups)
    for name, score in (("parametric", parametric), ("gaussian", gaussian)):
        single = Work("", partial(score, x, y))
        target = "60 ms, 0.5" if score is parametric else ""
        yield Row(f"{name}, {width} x {width} channels", "ms", single, (products,), target)
        grouped = Work("", partial(score, x, y, child_groups=labels, parent_groups=labels))
        yield Row(f"{name}, {groups} x {groups} groups of {size.group}", "ms", grouped, (products,))


def tree_rows(size: Sizes) -> Iterator[Row]:
    for nodes in (size.rows * 2 // 3, size.rows):
        shared, own = draw(3, nodes, 1), draw(4, size.trees, nodes, 1)
        base, labels = (shared - shared.T).square(), torch.arange(nodes) % 2 == 0
        ours = Work("", partial(cross_edges, base, own, labels), size.trees)
        points = torch.cat([shared, own[0]], 1).double()
        given = partial(peers.spanning_tree, torch.cdist(points, points).numpy())
        whole = partial(peers.spanning_tree_of_points, points.numpy())
        beside = _peer("scipy", "csgraph", given), _peer("scipy", "csgraph and cdist", whole)
        yield Row(f"exact spanning tree, {nodes} nodes, per pair", "ms", ours, beside, "12 ms, 40")


def gmi_rows(size: Sizes) -> Iterator[Row]:
    """One parent group of a layer with all its child groups, all other parents being given."""
    x, y = layer(size.rows, size.width, size.children * size.group)
    others = size.width - size.group
    labels = torch.cat([torch.zeros(size.group), torch.ones(others)]).long()
    one = [part.double().numpy() for part in (x[:, : size.group], y[:, : size.group], y[:, size.group :])]
    beside = _peer("scipy", "published algorithm on scipy", partial(peers.published, *one, seed=0))
    for conditioning, graph in (("raw", "mst"), ("residual", "mst"), ("residual", "knn")):
        settings: dict[str, Any] = dict(conditioning=conditioning, graph=graph)
        score = partial(gmi, x, y, child_groups=blocks(x.shape[1], size.children), parent_groups=labels)
        name = f"gmi, {conditioning}, {graph}, {size.group} / {size.group} / {others} columns, per pair"
        yield Row(name, "ms", Work("", partial(score, **settings), 2 * size.children), (beside,))


def knn_rows(size: Sizes) -> Iterator[Row]:
    for given in (0, 1, 4):
        x, y = layer(size.rows, given + 1, 8)
        x, y = x + draw(5, *x.shape), y + draw(6, *y.shape)  # not all peers are made for equal rows
        one = [part.double().numpy() for part in (x[:, :1], y[:, :1], y[:, 1:])]
        beside = tuple(
            _peer(package, package, partial(estimate, *one, neighbours=5))
            for package, estimate in (
                ("npeet-plus", peers.npeet),
                ("infomeasure", peers.infomeasure),
                ("tigramite", peers.tigramite),
            )
        )
        ours = Work("", partial(knn, x, y), x.shape[1] * y.shape[1])
        yield Row(f"knn, {given} conditioning columns, per pair", "ms", ours, beside)


def elimination_rows(size: Sizes) -> Iterator[Row]:
    layers = [layer(size.rows, *widths) for widths in size.layers]
    ours = Work("", lambda: [backward_elimination(*each) for each in layers])
    name = f"backward elimination, channels, {len(layers)} layer pairs of VGG16"
    yield Row(name, "s", ours, target="60 s", once=True)


def gpu_rows(size: Sizes) -> Iterator[Row]:
    bandwidth = copied_per_second()

    def floor(what: str, amount: float) -> Work:
        """The time that reading these bytes from the GPU's memory once takes."""
        name = f"{amount / 1e6:,.3g} MB of {what} at {bandwidth / 1e12:.2f} TB/s"
        return Work(name, None, known=amount / bandwidth)

    x, y = layer(size.rows, size.width, size.width, "cuda")
    groups = size.width // size.group
    labels = blocks(size.width, groups)
    ours = Work("", partial(parametric, x, y, child_groups=labels, parent_groups=labels))
    least = floor("samples and moments", 8 * size.rows * size.width + 24 * size.width**2)
    yield Row(f"GPU: parametric, {groups} x {groups} groups of {size.group}", "ms", ours, (least,), "5 ms")

    nodes, pairs = size.rows * 2 // 3, 64 * size.children
    shared = draw(3, nodes, 1, device="cuda")
    points, side = draw(4, pairs, nodes, size.group, device="cuda"), torch.arange(nodes, device="cuda") % 2
    ours = Work("", partial(cross_edges, (shared - shared.T).square(), points, side == 0), pairs)
    least = floor("shared distances", 4.0 * nodes**2)
    yield Row(f"GPU: exact spanning tree, {nodes} nodes, per pair", "us", ours, (least,), "10 us")

    shapes = [(min(128, d), min(128, c)) for d, c in size.layers]
    total = sum(d * c for d, c in shapes)
    layers = [
        (*layer(size.rows, d, c, "cuda"), blocks(c, q), blocks(d, p))
        for (d, c), (p, q) in zip(size.layers, shapes, strict=True)
    ]
    scores = ("mint", mint, nodes), ("gmi, residual, mst", partial(gmi, graph="mst"), size.rows)
    for name, score, nodes in scores:
        ours = Work("", partial(_all_layers, score, layers))
        least = floor("shared distances", 4.0 * nodes**2 * total)
        name = f"GPU: {name}, {len(layers)} layer pairs of VGG16, {total:,} pairs"
        yield Row(name, "s", ours, (least,), "15 s")


def _all_layers(score: Estimator, layers: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    for x, y, q, p in layers:
        score(x, y, child_groups=q, parent_groups=p)


def copied_per_second() -> float:
    """Bytes read and written by a copy on the GPU, per second."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(interleaved([lambda: target.copy_(source)], 10)[0])


def _peer(package: str, name: str, run: Callable[[], object]) -> Work:
    return Work(name, run if peers.installed()[package] else None)


def interleaved(works: list[Callable[[], object]], runs: int, *, warm: bool = True) -> list[list[float]]:
    """Seconds of each run of each work, taken in turns; one run before is not counted."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(runs + warm):
        for own, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm:
                own.append(time.perf_counter() - start)
    return seconds


def lines(row: Row, runs: int) -> Iterator[str]:
    """Measure one row and print it: a line for each of what stands beside it."""
    works = [work for work in (row.ours, *row.beside) if work.run]
    measured = interleaved([w.run for w in works if w.run], 1 if row.once else runs, warm=not row.once)
    seconds = {w: statistics.median(s) / w.count for w, s in zip(works, measured, strict=True)}
    scale = UNITS[row.unit]
    for work in row.beside or (None,):
        head = f"| {row.name} | {seconds[row.ours] * scale:.3g} {row.unit} "
        if work is None:
            yield f"{head}| | | | {row.target} |"
            continue
        other = seconds.get(work, work.known)
        cells = "not installed | "
        if other is not None:
            cells = f"{other * scale:.3g} {row.unit} | {other / seconds[row.ours]:.3g}"
        yield f"{head}| {work.name} | {cells} | {row.target} |"


def machine(threads: int) -> Iterator[str]:
    """Where and with what this ran."""
    info = Path("/proc/cpuinfo")
    known = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in known if line.startswith("model name")), "")
    cores = f"{os.cpu_count()} cores, of which {threads} at work"
    yield f"- {datetime.date.today()}, {cpu or platform.processor()}, {cores}"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield f"- {torch.cuda.get_device_name()}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
        yield "- beside a GPU's time: the bytes it goes through, at a copy's speed; caches can beat that"
    else:
        yield "- no CUDA device: the lines about a GPU are left out"
    found = {name: version(name) for name in ("torch", "numpy")} | peers.installed()
    yield f"- Python {platform.python_version()}, " + ", ".join(f"{n} {v or '-'}" for n, v in found.items())


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write the table here too.")
@click.option("--threads", default=1, show_default=True, help="Of PyTorch, on the CPU.")
@click.option("--runs", default=5, show_default=True, help="Of which the median is shown.")
@click.option("--only", default="*", help="Rows whose names match this pattern.")
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that all of it runs, and nothing else.")
def main(output: Path | None, threads: int, runs: int, only: str, quick: bool) -> None:
    """Time the estimators beside their peers and print one Markdown table."""
    torch.set_num_threads(threads)
    size = QUICK if quick else Sizes()
    parts = [gaussian_rows, tree_rows, gmi_rows, knn_rows, elimination_rows]
    table = [
        *machine(threads),
        f"- {size.rows} rows, single precision; medians of {runs} runs in turns; the ratio is theirs / ours",
        "",
        "| what | ours | beside | theirs | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    click.echo("\n".join(table))
    for part in [*parts, *([gpu_rows] if torch.cuda.is_available() else [])]:
        for row in part(size):
            if fnmatch.fnmatch(row.name, only):
                for line in lines(row, runs):
                    click.echo(line)
                    table.append(line)
    if output:
        partial = output.with_name(output.name + ".partial")
        partial.write_text("\n".join(table) + "\n")
        partial.replace(output)


if __name__ == "__main__":
    main()
