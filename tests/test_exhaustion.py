"""Too little memory, a full disk, a worker that dies: one line each, with what to change."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Chain
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info
from toydata import SHAPE, arrays, task

import mint_compress as mc
from mint_compress.resuming.state import GOES_ON

ON_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
ON_CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"


class Greedy(nn.Module):
    """A network that has no memory for one size of a batch."""

    size = 0
    error: Exception

    def __init__(self) -> None:
        super().__init__()
        self.network = Chain(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == Greedy.size:
            raise Greedy.error
        out: Tensor = self.network(x)
        return out


@pytest.fixture(autouse=True)
def enough() -> Iterator[None]:
    yield
    Greedy.size = 0


OPTIONS: dict[str, Any] = {
    "ratio": 0.3, "round_to": 1, "calibration_images": 37, "epochs": 1, "batch_size": 50, "heal_epochs": 0,
    "input_shape": SHAPE,
}  # fmt: skip
STAGES = [
    (37, {}, "in scoring (2.00 GiB more were asked for). Give fewer --calibration-images"),
    (64, {}, "in measuring (2.00 GiB more were asked for). Give --device cpu."),
    (50, {}, "in fine-tuning (2.00 GiB more were asked for). Give a smaller --batch-size, or --device cpu."),
]


@pytest.mark.parametrize(("size", "options", "says"), STAGES)
def test_out_of_memory_names_the_stage_and_the_option(size: int, options: Any, says: str) -> None:
    Greedy.size, Greedy.error = size, torch.OutOfMemoryError(ON_GPU)
    with pytest.raises(mc.MintError, match=f"^{re.escape(f'Out of memory on the GPU {says}')}") as error:
        mc.compress(Greedy(), arrays(), **{**OPTIONS, **options})
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_out_of_memory_in_the_repair_and_on_the_cpu() -> None:
    network = Greedy()
    _, report = mc.compress(network, arrays(), dry_run=True, **OPTIONS)
    plan = mc.PruningPlan.from_dict(report.plan)
    Greedy.size, Greedy.error = 37, RuntimeError(ON_CPU)
    options = {key: value for key, value in OPTIONS.items() if key != "ratio"}
    with pytest.raises(mc.MintError, match=r"^Out of memory on the CPU in the repair\. Give fewer --calibr"):
        mc.compress(network, arrays(), plan=plan, **options)


def test_it_is_said_as_well_that_the_run_can_go_on(tmp_path: Path) -> None:
    network = Greedy()
    Greedy.size, Greedy.error = 50, torch.OutOfMemoryError(ON_GPU)
    options = {**OPTIONS, "bench_seconds": 0.05, "output": tmp_path / "small.onnx"}
    with pytest.raises(mc.MintError, match="in fine-tuning") as error:
        mc.compress(network, arrays(), **options)
    assert error.value.__notes__ == [GOES_ON]
    Greedy.size = 0
    _, report = mc.compress(network, arrays(), **options, resume=True)
    assert report.quality.finetuned is not None or any("undone" in note for note in report.notes)


def test_other_errors_stay_what_they_are() -> None:
    Greedy.size, Greedy.error = 37, RuntimeError("a fault")
    with pytest.raises(mc.MintError, match="forward pass failed: RuntimeError: a fault"):
        mc.compress(Greedy(), arrays(), **OPTIONS)


class Cached(Dataset[Any]):
    """Keeps what it gives on a disk that is full."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        with open("/dev/full", "w") as file:
            file.write("image")
        return task(40, seed=0)[0][index], index % 4


class Killed(Cached):
    """Its workers run out of memory, and the system ends them."""

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return task(40, seed=0)[0][index], index % 4


def test_a_full_disk_and_a_dead_worker_of_ones_own_loader() -> None:
    with pytest.raises(mc.MintError, match=r"^The disk is full\. Free some space, or choose another folder"):
        mc.compress(Greedy(), (Cached(), Cached(), Cached()), **OPTIONS)
    loader = DataLoader(Killed(), batch_size=8, num_workers=1)
    with pytest.raises(mc.MintError, match=r"^A process that loads data died .*a smaller num_workers"):
        mc.compress(Greedy(), (loader, loader, loader), **OPTIONS)
