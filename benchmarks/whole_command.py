"""Seconds and memory of the whole command at the size that people use, beside Torch-Pruning and the floors.

    python benchmarks/whole_command.py resnet50 mobilenet_v2 --ratio 0.5
    python benchmarks/whole_command.py mobilenet_v2 --data images:DIR --images 256
    python benchmarks/whole_command.py networks:crepe --input-shape 1024

Each network, weights as it is made with, goes through this project's command with an export,
without training, and through Torch-Pruning's group L2 magnitude with PyTorch's export, each in a
process of its own whose peak memory is read. Floors are what the same work costs at the rate of the
machine's matrix product, measured in the same run: the passes over the images, second moments once, and a
few columns³ a layer for elimination and repair.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from mint_compress import zoo

PEER_TIMEOUT = 1800


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("networks", nargs="+", help="of the zoo, of torchvision, or module:callable")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--input-shape", default="3,224,224", help="without the batch")
    parser.add_argument("--data", help="a data spec; without it, noise")
    parser.add_argument("--images", type=int, help="calibration images; else what can be afforded")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--inner", choices=("ours", "torch-pruning"), help=argparse.SUPPRESS)
    return parser.parse_args()


def built(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    module, _, own = name.rpartition(":")
    make = getattr(importlib.import_module(module) if module else zoo, own, None)
    made: torch.nn.Module = make() if make else torchvision.models.get_model(name)
    return made.eval()


def shape_of(options: argparse.Namespace) -> tuple[int, ...]:
    return tuple(map(int, options.input_shape.split(",")))


def ours(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    from mint_compress.cli.app import main as command

    torch.save(built(name).state_dict(), folder / "in.pt")
    given = {
        "arch": name, "data": options.data, "ratio": options.ratio, "epochs": 0, "bench-seconds": 1,
        "heal-epochs": 0 if options.data else None, "input-shape": options.input_shape,
        "calibration-images": options.images,
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in given.items() if value is not None]
    command([str(folder / "in.pt"), "-o", str(folder / "out.onnx"), "--quiet", *words], standalone_mode=False)
    report = json.loads((folder / "out.json").read_text())
    drawn = next(note for note in report["notes"] if note.startswith("calibration images: "))
    images = int(drawn.rpartition(" ")[2].replace(",", ""))
    return {"stages": report["seconds"], "removed": report["ratio"]["removed"], "images": images}


def torch_pruning(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    import torch_pruning as tp

    model, example = built(name), torch.zeros(2, *shape_of(options))
    before = sum(p.numel() for p in model.parameters())
    heads = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1:]
    share = 1 - (1 - options.ratio) ** 0.5  # of the channels
    pruner = tp.pruner.BasePruner(
        model, example, tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share, ignored_layers=heads
    )
    pruner.step()
    torch.onnx.export(model, (example,), folder / "out.onnx", dynamo=True, verbose=False)
    return {"removed": 1 - sum(p.numel() for p in model.parameters()) / before}


def in_own_process(options: argparse.Namespace, name: str, which: str) -> dict[str, Any]:
    given = [
        f"--{key.replace('_', '-')}={value}" for key, value in vars(options).items() if value and key in INNER
    ]
    command = [sys.executable, __file__, name, f"--inner={which}", *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PEER_TIMEOUT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


INNER = ("ratio", "input_shape", "data", "images")


def inner(options: argparse.Namespace) -> None:
    (name,) = options.networks
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = {"ours": ours, "torch-pruning": torch_pruning}[options.inner](options, name, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak, **found}))


def rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of a matrix product."""
    a = torch.randn(size, size, dtype=dtype)
    a @ a
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < 1.0:
        a @ a
        runs += 1
    return 2 * size**3 * runs / (time.perf_counter() - start)


def floors(name: str, shape: tuple[int, ...], images: int, single: float, double: float) -> dict[str, float]:
    """Seconds that passes, second moments, and elimination and repair cost at these rates."""
    from mint_compress.nn.counting import module_macs
    from mint_compress.nn.layers import channel_groups, matrix_columns
    from mint_compress.nn.moments import MAX_COLUMNS, rows_wanted

    model = built(name)
    macs = module_macs(model, torch.zeros(1, *shape))
    modules = dict(model.named_modules())
    moments = factors = 0.0
    for layer, own in macs.layers.items():
        module = modules.get(layer)
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        columns, groups = matrix_columns(module), channel_groups(module)
        if columns > MAX_COLUMNS:
            continue
        places = max(1, own // module.weight.numel())
        rows = images * min(places, rows_wanted(columns, images, groups))
        moments += groups * rows * columns**2  # one triangle
        factors += groups * 3 * columns**3
    # calibration; both networks in the repair; sensitivities of 64 images
    passes = 2 * macs.total * (3 * images + 3 * min(images, 64))
    return {"passes": passes / single, "moments": 2 * moments / single, "factors": factors / double}


def main() -> None:
    options = parse()
    if options.inner:
        inner(options)
        return
    single, double = rate(torch.float32), rate(torch.float64)
    threads = torch.get_num_threads()
    print(f"{threads} threads; a matrix product: {single / 1e9:.0f} GFLOP/s, float64 {double / 1e9:.0f}")
    print("| network | images | seconds | stages | floors | GiB | group L2: s | GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        mine = in_own_process(options, name, "ours")
        try:
            peer = in_own_process(options, name, "torch-pruning")
        except subprocess.CalledProcessError:  # of some networks it makes none that runs
            peer = {}
        floor = floors(name, shape_of(options), mine["images"], single, double)
        stages = ", ".join(f"{stage} {s:.0f}" for stage, s in mine["stages"].items() if s >= 0.5)
        below = ", ".join(f"{what} {s:.0f}" for what, s in floor.items())
        figures = [name, mine["images"], f"{mine['seconds']:.0f}", stages, below, f"{mine['peak_gib']:.1f}"]
        figures += [f"{peer['seconds']:.0f}", f"{peer['peak_gib']:.1f}"] if peer else ["fails", ""]
        print(f"| {' | '.join(map(str, figures))} |", flush=True)
        if options.json:
            row = {
                "network": name,
                **mine,
                "floors": floor,
                "peer": peer,
                "gflops": [single / 1e9, double / 1e9],
            }
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
