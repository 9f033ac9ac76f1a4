"""Plans until the export is as fast as asked: each network is cut, exported, and timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mint_compress import processes
from mint_compress.errors import MintError
from mint_compress.exporting.benchmarking import BenchmarkResult, benchmark
from mint_compress.exporting.layer_timing import time_layers
from mint_compress.exporting.protocol import arrays, export, find_exporter
from mint_compress.exporting.shipping import Shipment
from mint_compress.nn.copying import copied
from mint_compress.nn.io import Inputs, count, select, to
from mint_compress.planning.latency import NetworkTimes
from mint_compress.planning.search import in_the_way, most_removed
from mint_compress.reaching.planning import Planner
from mint_compress.reporting.records import Trial
from mint_compress.run import Run
from mint_compress.settings import Benchmark, Budget
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan

ROUNDS = 6
"""Networks that are cut, exported and timed at most."""
SECONDS, RUNS = 3.0, 30
"""Of timing in each round, at least: so long, so often, but no longer than the last timing takes."""
AIM, ENOUGH = 0.98, 0.95
"""Of what it may take, a network is sought that takes the first share, for the last timing may differ from
this one; and one that takes at least the second share of it is not improved on."""


def network_times(run: Run, shipment: Shipment, images: Inputs) -> NetworkTimes:
    """What the original takes, and each of its layers at a few widths; the main process measures."""
    how = run.settings.benchmark

    def measured() -> NetworkTimes:
        exporter = find_exporter(shipment.original.path)
        batch = _batch(images, how)
        network = copied(run.original).cpu()
        part = shipment.part.of(network)
        names = {id(module): name for name, module in network.named_modules()}
        timed = time_layers(part, batch, exporter, how, progress=run.progress)
        layers = {names[id(part.get_submodule(name))]: times for name, times in timed.items()}
        session = exporter.open(shipment.original.path, device=how.provider, threads=how.threads)
        alone = benchmark(session, session, arrays(session, batch), seconds=min(how.seconds, 1.0))
        return NetworkTimes(alone.original.median, layers)

    return processes.by_main(measured)


def fast_enough(
    planner: Planner, shipment: Shipment, images: Inputs, budget: Budget
) -> tuple[PruningPlan, tuple[Trial, ...]]:
    """The plan that removes least of those that are as fast as asked, and what was tried.

    What single layers save is not what the network saves, so each plan is measured as a whole, and the next
    one is made by what the measurement says that layers are worth.

    Parameters
    ----------
    planner
        With the times of the layers.
    shipment
        With the export of the original.
    images
        Samples, batch first.
    budget
        With a speed-up or a latency.

    Raises
    ------
    MintError
        The fastest network within the bounds is too slow: how fast it is, and what stands in the way.
    """
    search = _Search(planner, shipment, images, budget)
    shares = (budget.ratio, budget.macs_ratio, budget.speedup)
    if shares == (None, None, None) and search.times.whole <= (budget.latency or 0):
        raise MintError(
            f"The original takes {search.times.whole:#.3g} ms, which is not above --latency "
            f"{budget.latency:g}. Ask for less, or for a --ratio."
        )
    return search.run()


@dataclass
class _Round:
    """One plan, and how its network did: ``share`` is what it takes of what it may take."""

    saving: float
    plan: PruningPlan
    result: BenchmarkResult
    share: float


class _Search:
    def __init__(self, planner: Planner, shipment: Shipment, images: Inputs, budget: Budget) -> None:
        assert planner.times is not None
        self.planner, self.shipment, self.images, self.budget = planner, shipment, images, budget
        self.times, self.rounds = planner.times, list[_Round]()

    def run(self) -> tuple[PruningPlan, tuple[Trial, ...]]:
        saving = self._first()
        for done in range(ROUNDS):
            self._tell(done)
            most = self._most()
            found = self._try(min(saving, most))
            if ENOUGH <= found.share <= 1 or self._nothing_new():
                break
            if found.share > 1 and found.saving >= most:
                raise self._too_slow(found)
            saving = self._next(most)
        self._tell(ROUNDS)
        kept = [one for one in self.rounds if one.share <= 1]
        if not kept:
            kept = [last := self._try(self._most())]
            if last.share > 1:
                raise self._too_slow(last)
        best = min(kept, key=lambda one: one.saving)
        return best.plan, tuple(_trial(one) for one in self.rounds)

    def _first(self) -> float:
        """What layers must save if all the rest saves in proportion to them."""
        scale = self.times.whole / self.times.in_layers
        return max(self.times.whole - AIM * self._may_take(self.times.whole), 0.0) / scale

    def _next(self, most: float) -> float:
        """By the last measurement, between the plans that were too slow and those that were fast enough."""
        last = self.rounds[-1]
        slow = max((one.saving for one in self.rounds if one.share > 1), default=0.0)
        fast = min((one.saving for one in self.rounds if one.share <= 1), default=most)
        original, took = last.result.original.median, last.result.pruned.median
        wanted = original - AIM * self._may_take(original)
        guess = last.saving * wanted / (original - took) if took < original else fast
        return guess if slow < guess < fast else (slow + fast) / 2

    def _may_take(self, original: float) -> float:
        """Milliseconds."""
        asked = (original / (self.budget.speedup or 1), self.budget.latency or original)
        return min(asked)

    def _most(self) -> float:
        """What the layers save where all goes that may."""
        plan = most_removed(self.planner.groups, self.budget)
        return 0.0 if plan is None else self._saved(plan)

    def _saved(self, plan: PruningPlan) -> float:
        return self.times.saved(self.planner.groups[0].network, plan.gone)

    def _try(self, saving: float) -> _Round:
        plan = self.planner.plan(self.budget, saving=saving)
        result = processes.by_main(lambda: self._measured(plan))
        share = result.pruned.median / self._may_take(result.original.median)
        self.rounds.append(_Round(max(saving, self._saved(plan)), plan, result, share))
        return self.rounds[-1]

    def _nothing_new(self) -> bool:
        """Whether the last plan was made before: widths go in steps."""
        *before, last = self.rounds
        return any(one.plan.cuts == last.plan.cuts for one in before)

    def _measured(self, plan: PruningPlan) -> BenchmarkResult:
        how = self.planner.run.settings.benchmark
        first = self.shipment.original.path
        small = prune_(copied(self.planner.run.original), plan).cpu().eval()
        exporter = find_exporter(first)
        with _folder(first) as folder:
            made = export(
                self.shipment.part.of(small), to(select(self.images, slice(2)), "cpu"), folder / first.name
            )
            original, pruned = (
                exporter.open(path, device=how.provider, threads=how.threads) for path in (first, made.path)
            )
            batch = arrays(original, _batch(self.images, how))
            often = RUNS * 2 * self.times.whole / 1000
            return benchmark(original, pruned, batch, seconds=min(how.seconds, max(SECONDS, often)))

    def _too_slow(self, found: _Round) -> MintError:
        result = found.result
        if self.budget.latency is not None and self._may_take(result.original.median) == self.budget.latency:
            asked = f"A latency of {self.budget.latency:g} ms"
        else:
            asked = f"A speed-up of {self.budget.speedup:g}x"
        blame = in_the_way(self.planner.groups, self.budget, "latency")
        return MintError(
            f"{asked} cannot be reached: the fastest takes {result.pruned.median:#.3g} ms of "
            f"{result.original.median:#.3g} ({result.speedup:.2f}x on {result.provider}) with --upper-limit "
            f"{self.budget.upper_limit:g}{blame}. Ask for less, or raise --upper-limit."
        )

    def _tell(self, done: int) -> None:
        if self.planner.run.progress:
            self.planner.run.progress("try speeds", done, ROUNDS)


def _batch(images: Inputs, how: Benchmark) -> Inputs:
    return to(select(images, torch.arange(how.batch) % count(images)), "cpu")


@contextmanager
def _folder(beside: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=beside.parent) as folder:
        yield Path(folder)


def _trial(one: _Round) -> Trial:
    result = one.result
    return Trial(
        one.plan.removed, 1 - one.plan.macs[1] / max(one.plan.macs[0], 1),
        latency_ms=result.pruned.median, speedup=result.speedup,
    )  # fmt: skip
