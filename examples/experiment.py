"""The commands that every experiment has: train a base, compress it by every criterion, make tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from bases import Bench, console, open_data, train
from rows import Results, cases, compress
from settings import Experiment
from tables import write

from mint_compress.nn.devices import resolve_device

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def commands(experiment: Experiment) -> click.Group:
    """``train``, ``compress`` and ``table`` of one experiment."""

    @click.group(help=experiment.title, context_settings={"show_default": True})
    def group() -> None:
        pass

    def common(function: Any) -> Any:
        for option in (
            click.option("--device", default="auto", help="auto, cpu, cuda"),
            click.option("--seeds", default=experiment.seeds, help="number of seeds"),
            click.option("--weights", default=str(HERE / "weights"), help="a checkpoint, or a folder"),
            click.option("--data", help=f".npz or {experiment.dataset}:DIR; else it is downloaded"),
        ):
            function = option(function)
        return function

    def bench(data: str | None, weights: str, device: str) -> Bench:
        where = resolve_device(device)
        return Bench(experiment, open_data(experiment, data), where, Path(weights))

    @group.command("train", help="Train the base network of every seed.")
    @common
    @click.option("--epochs", default=experiment.base.epochs)
    def _train(data: str | None, weights: str, seeds: int, device: str, epochs: int) -> None:
        ready = bench(data, weights, device)
        ready.experiment = replace(experiment, base=replace(experiment.base, epochs=epochs))
        train(ready, seeds)

    @group.command("compress", help="Compress it by every criterion; rows that are there are kept.")
    @common
    @click.option("--epochs", default=experiment.finetuning.epochs, help="0: without training")
    @click.option("--ratio", "ratios", multiple=True, type=float, help="instead of the experiment's")
    @click.option("--only", multiple=True, help="a criterion; may be repeated")
    @click.option("--results", default=str(RESULTS / f"{experiment.name}.json"))
    def _compress(
        data: str | None, weights: str, seeds: int, device: str, epochs: int,
        ratios: tuple[float, ...], only: tuple[str, ...], results: str,
    ) -> None:  # fmt: skip
        chosen = replace(
            experiment,
            ratios=ratios or experiment.ratios,
            finetuning=replace(experiment.finetuning, epochs=epochs),
        )
        ready = bench(data, weights, device)
        ready.experiment = chosen
        compress(ready, Results(Path(results), experiment), cases(chosen, seeds, epochs, only))

    @group.command("table", help="Write docs/results.md from all files in examples/results.")
    @click.option("--results", default=str(RESULTS), help="folder of the .json files")
    @click.option("--output", default=str(HERE.parent / "docs" / "results.md"))
    def _table(results: str, output: str) -> None:
        console.print(f"wrote {write(Path(results), Path(output))}")

    return group
