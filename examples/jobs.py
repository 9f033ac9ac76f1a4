"""A job's rows: a network compressed by this project's criterion and by L2 magnitude, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from controls import CRITERIA, allocate
from row_file import RowFile, circumstances
from torch import nn

import mint_compress as mc

RESULTS = Path(__file__).parent / "results"
OURS, L2 = "gaussian, backward", "L2 magnitude"


def options(*, ratios: tuple[float, ...], epochs: int = 0) -> Callable[[Any], Any]:
    """The options that ``compress`` has in every job."""
    given = (
        click.option("--ratio", "ratios", multiple=True, default=ratios, help="Of the parameters."),
        click.option("--epochs", default=epochs, help="Of fine-tuning with labels."),
        click.option("--heal-epochs", default=None, type=int, help="Of healing without; else some minutes."),
        click.option("--calibration-images", default=None, type=int, help="For scores, repair and healing."),
        click.option("--results", type=click.Path(path_type=Path), help="Where the rows are kept."),
    )  # fmt: skip

    def decorated(command: Any) -> Any:
        for option in given:
            command = option(command)
        return command

    return decorated


def compress(
    model: nn.Module,
    data: mc.Data,
    *,
    ratios: Sequence[float],
    results: Path,
    title: str,
    epochs: int,
    heal_epochs: int | None,
    calibration_images: int | None = None,
    **more: Any,
) -> None:
    """Every ratio and criterion that has no row yet; ``more`` are options of ``mint_compress.compress``."""
    rows = RowFile(results, {"job": results.stem, "title": title})
    for criterion in (OURS, L2):
        for ratio in ratios:
            how = {"epochs": epochs, "heal_epochs": heal_epochs, "calibration_images": calibration_images}
            key = {"criterion": criterion, "ratio": ratio, **how}
            if rows.has(**key):
                continue
            start = time.perf_counter()
            chosen: dict[str, Any] = {"ratio": ratio, "round_to": 1}
            if criterion == L2:
                chosen = {"plan": by_magnitude(model, data, ratio)}
            _, report = mc.compress(model, data, **chosen, **how, **more)
            assert report.metric is not None
            rows.add(
                **key,
                metric=report.metric.name,
                quality=asdict(report.quality),
                notes=[note for note in report.notes if "heal" in note or "undone" in note],
                removed=report.ratio.removed,
                parameters=[report.parameters.before, report.parameters.after],
                macs=[report.macs.before, report.macs.after],
                seconds=round(time.perf_counter() - start, 1),
                **circumstances(torch.device("cpu")),
            )
            stages = asdict(report.quality).items()
            shown = ", ".join(f"{stage} {report.metric.shown(value)}" for stage, value in stages)
            click.echo(f"{report.ratio.removed:.1%} {criterion}: {report.metric.name} {shown}")


def by_magnitude(model: nn.Module, data: mc.Data, ratio: float) -> mc.PruningPlan:
    """The same share of every group, its smallest channels by their L2 norm."""
    images, _ = data.calibration(2, seed=0)
    groups = mc.find_groups(model, images[:1])
    scores = CRITERIA[L2](model, groups, images, torch.empty(0), 0)
    left = int((1 - ratio) * groups[0].network.parameters)
    return allocate(groups, scores, "uniform", left, ratio=ratio)
