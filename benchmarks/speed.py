"""A speed that is asked for, at the price of latency and at that of MACs: what each leaves of a network.

    python benchmarks/speed.py resnet56 --weights resnet56.th --data cifar10.npz --speedup 1.5
    python benchmarks/speed.py mobilenet_v2 --weights mobilenet_v2.pth --data images:photographs --speedup 1.5
    python benchmarks/speed.py resnet50 --speedup 2

All prices are made to reach the same speed-up, measured as a whole network on ONNX Runtime, so that what
is left can be compared: the metric after the repair, or without data the parameters and MACs. Nothing is
trained. Without weights a network is random, which its latency does not mind. Rows go to
benchmarks/results/speed.json, one for each network, speed-up and price, and are not made again.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import torchvision

import mint_compress as mint

RESULTS = Path(__file__).parent / "results" / "speed.json"
PRICES = ("latency", "macs", "both")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@click.command()
@click.argument("network")
@click.option("--weights", type=click.Path(path_type=Path, exists=True))
@click.option("--data")
@click.option("--speedup", "speedups", type=float, multiple=True, default=(1.5,))
@click.option("--price", "prices", multiple=True, default=PRICES)
@click.option("--calibration-images", type=int)
@click.option("--threads", default=1)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
def main(
    network: str,
    weights: Path | None,
    data: str | None,
    speedups: tuple[float, ...],
    prices: tuple[str, ...],
    results: Path,
    **more: Any,
) -> None:
    """Print a row for every speed-up and price."""
    rows = json.loads(results.read_text()) if results.exists() else []
    for speedup in speedups:
        for price in prices:
            key = {"network": network, "speedup asked": speedup, "price": price, **more}
            if not any(key.items() <= row.items() for row in rows):
                rows.append({**key, **measured(network, weights, data, speedup, price, more)})
                results.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(next(row for row in rows if key.items() <= row.items())), flush=True)


def measured(
    network: str, weights: Path | None, data: str | None, speedup: float, price: str, more: dict[str, Any]
) -> dict[str, Any]:
    """One run."""
    torch.manual_seed(0)
    small = network.endswith("_cifar") or network == "resnet56"
    model: Any = weights
    given: dict[str, Any] = {"arch": "resnet56_cifar" if network == "resnet56" else network}
    if weights is None:
        model, given = torchvision.models.get_model(network).eval(), {}
    if not small:
        given["input_shape"] = (3, 224, 224)
    given |= IMAGENET if data is not None else {}
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        try:
            _, report = mint.compress(
                model, data, output=Path(folder) / "small.onnx", speedup=speedup, cost=price,
                epochs=0, heal_epochs=0, force=True, **given, **more,
            )  # fmt: skip
        except mint.MintError as error:
            return {"error": str(error)}
    assert report.ratio is not None
    assert report.macs is not None
    assert report.latency_ms is not None
    return {
        "speedup": report.speedup,
        "ms": [report.latency_ms.original.median, report.latency_ms.pruned.median],
        "tried": [trial.speedup for trial in report.trials],
        "removed": report.ratio.removed,
        "macs removed": report.macs.removed,
        "metric": report.metric.name if report.metric else None,
        "original": report.quality.original,
        "repaired": report.quality.repaired,
        "seconds": {name: round(taken, 1) for name, taken in report.seconds.items()},
        "in all": round(time.perf_counter() - start, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


if __name__ == "__main__":
    main()
