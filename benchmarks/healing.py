"""Healing without labels: how much it gives, from how many images on, and which activations to hold.

    python benchmarks/healing.py RESNET56.th CIFAR10.npz --ratio 0.7

A public ResNet-56 is pruned and repaired on 1,024 images; then one thing is changed at a time. Accuracy is on
the test split; nothing is chosen by it. Rows go to benchmarks/results/healing.json and are not made again.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import mint_compress as mint
from mint_compress.settings import HEAL_EPOCHS
from mint_compress.training import healing, matching

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESULTS = Path(__file__).parent / "results" / "healing.json"

USUAL = {
    **{"images": 1024, "epochs": HEAL_EPOCHS, "lr": healing.LR},
    **{"places": matching.PLACES, "weigh": healing.MATCHING_WEIGHS},
}
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"images": n} for n in (64, 128, 256, 512)),
    *({"weigh": w} for w in (0.0, 1.0, 30.0)),
    *({"places": n} for n in (2, 32)),
    *({"lr": lr} for lr in (3e-4, 3e-3)),
    {"images": 4096},
    {"epochs": 40},
)
"""What is changed of USUAL, a row each."""


@click.command()
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("data")
@click.option("--arch", default="resnet56_cifar")
@click.option("--ratio", type=float, default=0.7)
@click.option("--first", type=int, default=len(CHANGES), help="Only so many rows.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(weights: Path, data: str, arch: str, ratio: float, first: int, results: Path) -> None:
    """Print a row for every change."""
    model = mint.load_model(weights, arch=arch).module.eval()
    sets = mint.load_data(data, mean=MEAN, std=STD)
    repaired, plan = shrunk(model, sets, ratio)
    before = mint.accuracy(repaired, sets.test)
    print(f"{ratio:.0%}: {mint.accuracy(model, sets.test):.2%} original, {before:.2%} after the repair")
    rows = json.loads(results.read_text()) if results.exists() else []
    for change in CHANGES[:first]:
        key = {"arch": arch, "ratio": ratio, **USUAL, **change}
        if any(all(row[k] == v for k, v in key.items()) for row in rows):
            continue
        rows.append({**key, "repaired": before, **healed(copy.deepcopy(repaired), model, plan, sets, key)})
        results.write_text(json.dumps(rows, indent=1) + "\n")
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()))


def shrunk(model: nn.Module, sets: mint.Data, ratio: float) -> tuple[nn.Module, mint.PruningPlan]:
    """Pruned and repaired on 1,024 images."""
    images, _ = sets.calibration(1024, seed=0)
    batches = list(images.split(64))
    groups = mint.find_groups(model, images[:1])
    scores = mint.score(groups, mint.calibrate(model, groups, batches, seed=0))
    plan = mint.plan(groups, scores, mint.Budget(ratio, round_to=1))
    small = mint.prune_(copy.deepcopy(model), plan)
    mint.compensate_(small, model, plan, batches)
    return small, plan


def healed(
    small: nn.Module, model: nn.Module, plan: mint.PruningPlan, sets: mint.Data, how: dict[str, Any]
) -> dict[str, Any]:
    """One row: accuracy, and what healing says of itself."""
    matching.PLACES, healing.MATCHING_WEIGHS = how["places"], how["weigh"]
    images, _ = sets.calibration(how["images"], seed=0)
    held_out, _ = next(iter(torch.utils.data.DataLoader(sets.validation, 256)))
    start = time.perf_counter()
    result = mint.heal_(
        small, model, plan, images, held_out=held_out, epochs=how["epochs"], lr=how["lr"], device="cpu"
    )
    return {
        "healed": mint.accuracy(small, sets.test),
        "kept": result.kept,
        "distance": [result.before, result.after],
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    main()
