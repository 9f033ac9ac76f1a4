"""Run the stages on a device that is as foreign to the CPU as a GPU, and compare what comes out.

    python tests/second_device.py FOLDER

builds the device in FOLDER (a C++ compiler and ninja are needed). Not imported by tests: a process has one
such device, and PyTorch treats it as its accelerator from then on.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from networks import NETWORKS, Chain, build, images
from torch import Tensor
from torch.utils import cpp_extension
from toydata import arrays

import mint_compress as mc
from mint_compress.estimators import find_estimator
from mint_compress.estimators.backward import backward_elimination
from mint_compress.estimators.gmi import gmi
from mint_compress.estimators.parametric import parametric
from mint_compress.training import finetuning

SOURCE = Path(__file__).with_suffix(".cpp")
CPU = torch.device("cpu")
TOLERANCE = 1e-2
"""Rounding, in the directions of weights that inputs hardly have."""
# Module.to gives parameters a new identity here, which it does not on CUDA
UNTIED_BY_THE_MOVE = {"tied_weights"}


def made(folder: Path) -> torch.device:
    """The device, called ``second``."""
    cpp_extension.load("second_device", [str(SOURCE)], build_directory=str(folder), with_cuda=False)
    module: Any = types.ModuleType("second")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.get_rng_state = lambda *_: torch.zeros(1, dtype=torch.uint8)
    for name in ("_is_in_bad_fork", "manual_seed_all", "set_rng_state", "synchronize"):
        setattr(module, name, lambda *_, **__: None)
    torch.utils.rename_privateuse1_backend("second")
    torch._register_device_module("second", module)
    return torch.device("second:0")


def differs(computed: Callable[[torch.device], list[Tensor]], device: torch.device) -> float:
    """Largest difference between what is computed on the device and on the CPU."""
    there, here = computed(device), computed(CPU)
    assert [t.shape for t in there] == [t.shape for t in here]
    return max(float((a.cpu() - b).abs().max()) for a, b in zip(there, here, strict=True) if a.numel())


def stages(name: str) -> Callable[[torch.device], list[Tensor]]:
    """Find groups, calibrate, score, plan, remove, repair."""

    def computed(device: torch.device) -> list[Tensor]:
        model, x = build(name), images(name, 64)
        groups = mc.find_groups(model, x[:1], prune_inputs=["*"])
        model.to(device)
        batches = x.to(device).split(16)
        scores = mc.score(groups, mc.calibrate(model, groups, batches))
        plan = mc.plan(groups, scores, mc.Budget(0.3, round_to=1, upper_limit=0.8))
        pruned = mc.prune_(copy.deepcopy(model), plan)
        mc.compensate_(pruned, model, plan, batches)
        return [t.double() for t in (*scores.nats.values(), *pruned.state_dict().values())]

    return computed


def estimates(estimate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[torch.device], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parents = torch.randn(120, 5, generator=generator)
    children = parents @ torch.randn(5, 4, generator=generator) + torch.randn(120, 4, generator=generator)
    return lambda device: [estimate(children.to(device), parents.to(device))]


def through_torch_pruning(device: torch.device) -> list[Tensor]:
    model, x = build("chain").to(device), images("chain", 32).to(device)
    importance = mc.MutualInformationImportance(model, [x])
    tp.pruner.BasePruner(model, x[:1], importance, pruning_ratio=0.5, ignored_layers=[model.fc]).step()
    return list(model.state_dict().values())


def training(device: torch.device) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, teacher = Chain(8, 8), Chain(8, 8)
    resolve = finetuning.resolve_device
    finetuning.resolve_device = lambda _: device  # which --device does not know
    try:
        data = arrays()
        mc.finetune_(model, data.augmented, teacher=teacher, epochs=2, batch_size=16, device="cpu")
    finally:
        finetuning.resolve_device = resolve
    assert all(p.device == CPU for network in (model, teacher) for p in network.parameters())
    # not the running statistics: what the device leaves to the CPU cannot write to them
    return [p.detach() for p in model.parameters()]


def main(folder: str) -> None:
    device = made(Path(folder))
    x = torch.randn(4, 4, device=device)
    try:
        x + torch.ones(4)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the device can be mixed with the CPU")
    cases = {name: stages(name) for name in NETWORKS if name not in UNTIED_BY_THE_MOVE}
    cases |= {name: estimates(find_estimator(name)) for name in ("gaussian", "gmi", "mint", "knn")}
    cases["tree"] = estimates(lambda children, parents: gmi(children, parents, graph="mst"))
    cases["parametric"] = estimates(parametric)
    cases["backward"] = estimates(lambda children, parents: backward_elimination(children, parents).loss)
    cases |= {"torch-pruning": through_torch_pruning, "training": training}
    for name, computed in cases.items():
        difference = differs(computed, device)
        print(f"{name}: {difference:.1e}", flush=True)
        assert difference < TOLERANCE


if __name__ == "__main__":
    main(sys.argv[1])
