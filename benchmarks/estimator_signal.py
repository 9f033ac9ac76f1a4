"""What the estimators see of a link, as the number of conditioning dimensions grows.

    python benchmarks/estimator_signal.py --seeds 20

Four children, their four parents and k other parents, all jointly Gaussian, half of each side's variance
from the others: the conditional mutual information of the two is known. Then common causes without a
link. Prints Markdown: mean ± standard deviation over the seeds, and in brackets the area under the
curve against the estimates at 0 nats (.5: no signal, 1: never mistaken). The last column is the shortest
CPU time of a call, which scores four child groups (one per column) with two parent groups (the four
parents; all others).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import click
import torch
from torch import Tensor

from mint_compress.estimators.gmi import gmi
from mint_compress.estimators.mint import mint
from mint_compress.estimators.parametric import parametric

ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "parametric": parametric,
    "gmi, k-NN": gmi,
    "gmi, tree": lambda *sides, **rest: gmi(*sides, graph="mst", **rest),
    "mint (raw)": mint,
}


class Draw(NamedTuple):
    """Children and their groups; parents, of which the first ``own`` are the group asked about."""

    children: Tensor
    child_groups: Tensor
    parents: Tensor
    own: int


def linked(nats: list[float], others: int, rows: int, generator: torch.Generator) -> Draw:
    """Four parents; four children for each number of nats they have in common, given ``others`` columns."""
    rest = torch.randn(rows, others, generator=generator)
    cause = rest @ torch.randn(others, 8, generator=generator) / math.sqrt(max(others, 1))
    own = torch.randn(rows, 4, generator=generator)
    children = []
    for each in nats:
        rho = math.sqrt(1 - math.exp(-each / 2))  # four independent links of nats / 4
        left = torch.randn(rows, 4, generator=generator)
        children.append(cause[:, :4] + rho * own + math.sqrt(1 - rho**2) * left)
    labels = torch.arange(4 * len(nats)) // 4
    return Draw(torch.cat(children, 1), labels, torch.cat([cause[:, 4:] + own, rest], 1), 4)


CAUSES: dict[str, Callable[[Tensor], Tensor]] = {
    "z": lambda z: z,
    "z²": lambda z: z**2,
    "sin 3z": lambda z: (3 * z).sin(),
}


def unlinked(cause: Callable[[Tensor], Tensor], rows: int, generator: torch.Generator) -> Draw:
    """A child and a parent that both are f(z) with noise of half its standard deviation, given z: 0 nats."""
    z, *noise = torch.randn(3, rows, 1, generator=generator)
    common = cause(z) / cause(z).std()
    child, parent = (common + each / 2 for each in noise)
    return Draw(child, torch.tensor([0]), torch.cat([parent, z], 1), 1)


def estimates(draw: Draw, seed: int) -> dict[str, tuple[Tensor, float]]:
    """Every estimator's answer per child group, ``(Q,)``, and the CPU time of the call in ms."""
    labels = (torch.arange(draw.parents.shape[1]) >= draw.own).long()
    found = {}
    for name, estimate in ESTIMATORS.items():
        start = time.process_time()
        answer = estimate(
            draw.children, draw.parents, child_groups=draw.child_groups, parent_groups=labels, seed=seed
        )
        found[name] = answer[:, 0], 1000 * (time.process_time() - start)
    return found


def area(null: Tensor, other: Tensor) -> float:
    """Share of pairs (null, other) in which the other is larger; equal ones count half."""
    return float((other[:, None] > null).double().mean() + (other[:, None] == null).double().mean() / 2)


def line(*cells: str) -> None:
    click.echo(f"| {' | '.join(cells)} |")


def cell(values: Tensor) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std()):.3f}"


def header(*titles: str) -> None:
    line(*titles)
    line(*["---"] * len(titles))


def signal_table(nats: list[float], others: list[int], rows: int, seeds: int) -> None:
    header("others", "estimator", *(f"{n:g} nats" for n in nats), "ms")
    for count in others:
        runs = []
        for seed in range(seeds):
            draw = linked(nats, count, rows, torch.Generator().manual_seed(seed))
            runs.append(estimates(draw, seed))
        for name in ESTIMATORS:
            found = torch.stack([run[name][0] for run in runs], 1)  # nats, seeds
            cells = [cell(each) + f" ({area(found[0], each):.2f})" for each in found[1:]]
            line(str(count), name, cell(found[0]), *cells, f"{min(run[name][1] for run in runs):.0f}")


def cause_table(rows: int, seeds: int) -> None:
    header("common cause", *ESTIMATORS)
    for title, cause in CAUSES.items():
        draws = [unlinked(cause, rows, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
        runs = [estimates(draw, seed) for seed, draw in enumerate(draws)]
        line(title, *(cell(torch.cat([run[name][0] for run in runs])) for name in ESTIMATORS))


@click.command(help=__doc__)
@click.option("--seeds", default=20, show_default=True, help="Draws per cell.")
@click.option("--rows", default=2500, show_default=True)
@click.option("--others", default=[0, 1, 4, 16, 64, 508], multiple=True, show_default=True)
@click.option("--nats", default=[0.1, 0.3, 1.0], multiple=True, show_default=True, help="Beside 0.")
@click.option("--threads", default=1, show_default=True)
def main(seeds: int, rows: int, others: tuple[int, ...], nats: tuple[float, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    signal_table([0.0, *nats], list(others), rows, seeds)
    click.echo()
    cause_table(rows, seeds)


if __name__ == "__main__":
    main()
