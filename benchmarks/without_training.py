"""How much accuracy is left when channels go and nothing is trained.

    python benchmarks/without_training.py --data cifar10.npz --weights resnet20.th --ratio 0.5

Scores, plan, removal and repair of this project beside Torch-Pruning's group L2 magnitude and random
selection at the same parameter count, each with nothing and with the same repair; one table, one run.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import mint_compress as mc
from mint_compress.data.synthetic import synthetic_images

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from controls import CRITERIA, Scores, allocate, random


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--arch")
    parser.add_argument("--mean", nargs="+", type=float)
    parser.add_argument("--std", nargs="+", type=float)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="of the random control")
    parser.add_argument("--no-data", action="store_true", help="calibrate on noise, test on the data")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    loaded = mc.load_model(options.weights, arch=options.arch)
    model = loaded.module
    data = mc.load_data(options.data, mean=options.mean, std=options.std, input_shape=loaded.input_shape)
    if options.no_data:
        images = synthetic_images(options.images, data.input_shape, seed=0)
    else:
        images, _ = data.calibration(options.images, seed=0)
    batches = images.split(64)
    print(f"{options.weights}: {mc.accuracy(model, data.test):.2%} on {data.sizes[2]} test images")

    start = time.perf_counter()
    groups = mc.find_groups(model, images[:1])
    calibration = mc.calibrate(model, groups, batches)
    scores = mc.score(groups, calibration)
    budget = mc.Budget(options.ratio, round_to=options.round_to)
    ours = mc.plan(groups, scores, budget)
    planned = time.perf_counter() - start
    print(f"scoring and planning: {planned:.0f} s")

    plans = selections(model, groups, scores, ours, images, options)
    alike = mc.score(groups, replace(calibration, sensitivity={}))
    plans["the same, all outputs of a layer alike"] = mc.plan(groups, alike, budget)
    print("| selection | removed | MACs left | nothing | repaired | repair s |\n|---|---|---|---|---|---|")
    for name, chosen in plans.items():
        row = measure(model, chosen, batches, data)
        print(
            f"| {name} | {chosen.removed:.2%} | {chosen.macs[1] / chosen.macs[0]:.1%} | {row['nothing']:.2%} "
            f"| {row['repaired']:.2%} | {row['seconds']:.0f} |",
            flush=True,
        )
        if options.json:
            record = {
                "weights": Path(options.weights).name,
                "ratio": options.ratio,
                "no_data": options.no_data,
                "selection": name,
                "removed": chosen.removed,
                **row,
            }
            with options.json.open("a") as file:
                file.write(json.dumps(record) + "\n")


def selections(
    model: torch.nn.Module,
    groups: list[mc.ChannelGroup],
    scores: mc.ChannelScores,
    ours: mc.PruningPlan,
    images: torch.Tensor,
    options: argparse.Namespace,
) -> dict[str, mc.PruningPlan]:
    """Our plan, and uniform ones of other criteria that leave as many parameters."""

    def uniform(own: Scores) -> mc.PruningPlan:
        left = ours.parameters[1]
        return allocate(groups, own, "uniform", left, ratio=options.ratio, round_to=options.round_to)

    magnitude = CRITERIA["L2 magnitude"](model, groups, images[:1], torch.zeros(1, dtype=torch.long), 0)
    plans = {
        "gaussian, one threshold": ours,
        "gaussian, uniform": uniform({n: v.numpy() for n, v in scores.nats.items()}),
        "L2 group magnitude, uniform": uniform(magnitude),
    }
    for seed in range(options.seeds):
        plans[f"random {seed}, uniform"] = uniform(random(model, groups, images, images, seed))
    return plans


def measure(
    model: torch.nn.Module, chosen: mc.PruningPlan, batches: object, data: object
) -> dict[str, float]:
    """Accuracy on the test split after removal, and after repair."""
    pruned = mc.prune_(copy.deepcopy(model), chosen)
    nothing = mc.accuracy(pruned, data.test)
    start = time.perf_counter()
    mc.compensate_(pruned, model, chosen, batches)
    return {
        "nothing": nothing,
        "seconds": time.perf_counter() - start,
        "repaired": mc.accuracy(pruned, data.test),
    }


if __name__ == "__main__":
    main()
