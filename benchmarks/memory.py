"""Peak memory of a run by network, image size and number of calibration images, and what it said it needs.

    python benchmarks/memory.py
    python benchmarks/memory.py resnet50:224:256 --data images:photographs/calibration --epochs 1

Each row, NETWORK:SIDE:IMAGES, is ``compress`` with an export at half of the parameters, on noise unless there
are ``--data``, in a process of its own. Memory is what is resident, looked at 20 times a second; the stage is
the one that was going on at the peak. Processes that read images are counted with it, each page once (PSS).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

ROWS = (
    "resnet20_cifar:32:256",
    "resnet20_cifar:32:1024",
    "mobilenet_v2:224:64",
    "mobilenet_v2:224:256",
    "resnet18:224:64",
)
GIB = 2**30


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="NETWORK:SIDE:IMAGES")
    parser.add_argument("--data", help="a data spec; without it, noise")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning, with data")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def built(name: str) -> Any:
    import torch
    import torchvision

    from mint_compress import zoo

    torch.manual_seed(0)
    make = getattr(zoo, name, None)
    return (make() if make else torchvision.models.get_model(name)).eval()


class Watch(threading.Thread):
    """Looks at the memory of this process and of those that it has started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stage, self.peaks, self.ended = "start", dict[str, int](), threading.Event()

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stage = stage

    def run(self) -> None:
        while not self.ended.wait(0.05):
            bytes_ = resident() + sum(proportional(child.pid) for child in active_children())
            self.peaks[self.stage] = max(bytes_, self.peaks.get(self.stage, 0))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def proportional(pid: int | None) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return int(text.split("Pss:", 1)[1].split()[0]) * 1024


def inner(options: argparse.Namespace) -> None:
    import mint_compress as mc

    name, side, images = options.rows[0].split(":")
    watch, start = Watch(), time.perf_counter()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        _, report = mc.compress(
            built(name), options.data, output=Path(folder) / "out.onnx", ratio=0.5, epochs=options.epochs,
            input_shape=(3, int(side), int(side)), calibration_images=int(images), bench_seconds=1,
            progress=watch.progress,
        )  # fmt: skip
    watch.ended.set()
    watch.join()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said = re.search(r"needs about ([\d.]+) GiB", " ".join(report.notes))
    row = {
        "peak": max(own, *watch.peaks.values()) / GIB,
        "stages": {stage: peak / GIB for stage, peak in watch.peaks.items()},
        "said": float(said[1]) if said else None,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(row))


def main() -> None:
    options = parse()
    if options.inner:
        inner(options)
        return
    print("| network | side | images | peak GiB | at | said GiB |")
    print("|---|---|---|---|---|---|")
    for row in options.rows:
        command = [sys.executable, __file__, row, "--inner", f"--epochs={options.epochs}"]
        command += [f"--data={options.data}"] if options.data else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        at = max(found["stages"], key=found["stages"].get)
        said = "" if found["said"] is None else f"{found['said']:.1f}"
        cells = [*row.split(":"), f"{found['peak']:.2f}", at, said]
        print(f"| {' | '.join(cells)} |", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps({"row": row, **found}) + "\n")


if __name__ == "__main__":
    main()
