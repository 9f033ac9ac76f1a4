"""Every stage, by the processes that run this together; the test computes the same in one process.

torchrun --nproc-per-node 2 tests/two_processes.py RESULTS.pt
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from networks import NETWORKS, Chain, build, images
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toydata import arrays, loaders

import mint_compress as mc
from mint_compress import processes
from mint_compress.data.augmentation import Augmented
from mint_compress.data.batching import batches as batches_of
from mint_compress.nn.contexts import seeded
from mint_compress.scoring.calibration import calibrate
from mint_compress.training.evaluation import evaluate
from mint_compress.training.healing import heal_
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.imitation import Imitation

SOME = ("grouped", "called_twice", "transposed", "windows", "large", "wide")


class Wide(nn.Module):
    """Its last layer reads more columns than products are formed of, and than there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8 * 25 * 25, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))  # type: ignore[no-any-return]


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A network and batches of different sizes, their number odd; in float64, where rounding is nothing."""
    if name in NETWORKS:
        return build(name).double(), list(images(name, 37).double().split(8))
    with seeded(0):
        model, shape = (Wide(), (96, 3, 25, 25)) if name == "wide" else (Chain(), (64, 3, 40, 40))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model.double().eval(), list(drawn.split(15))


def calibrated(name: str) -> list[Tensor]:
    model, parts = made(name)
    groups = mc.find_groups(model, parts[0][:1])
    found = calibrate(model, groups, parts, samples=True)
    rows = [torch.tensor([m.rows]) for m in found.moments.values()]
    moments = [m.covariance for m in found.moments.values()]
    samples = [side for pair in found.samples.values() for side in pair]
    return [*rows, *moments, *samples, *found.sensitivity.values()]


def repaired(name: str) -> list[Tensor]:
    model, parts = made(name)
    groups = mc.find_groups(model, parts[0][:1])
    scores = mc.score(groups, mc.calibrate(model, groups, parts))
    plan = mc.plan(groups, scores, mc.Budget(0.3, round_to=1, upper_limit=0.8))
    pruned = mc.prune_(copy.deepcopy(model), plan)
    repairs = mc.compensate_(pruned, model, plan, parts)
    chosen = torch.tensor([-1.0 if one.ridge is None else one.ridge for one in repairs])
    return [chosen, *pruned.state_dict().values()]


def network(normalised: bool) -> nn.Module:
    with seeded(0):
        norm = nn.BatchNorm2d(8) if normalised else nn.Identity()
        return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()


def finetuned(data: Any, *, normalised: bool = False) -> list[Tensor]:
    model = network(normalised)
    result = mc.finetune_(model, data, teacher=network(True), epochs=2, batch_size=19, device="cpu")
    return [torch.tensor([one.loss for one in result]), *model.state_dict().values()]


def healed() -> list[Tensor]:
    model = network(True)
    x = torch.cat([inputs for inputs, _ in batches_of(arrays().train, 50)])
    plan = mc.PruningPlan(None, 0.0, (1, 1), (1, 1), (), (), {})
    for parameter in (smaller := copy.deepcopy(model)).parameters():
        parameter.data.mul_(0.9)
    result = heal_(smaller, model, plan, x, held_out=x[:50], epochs=2, batch_size=33, device="cpu")
    assert result.kept
    return [torch.tensor([result.before, result.after])]


def measured() -> list[Tensor]:
    found = []
    for source in (arrays().test, loaders()["test"], list(loaders()["test"])):
        for task in (Classification(), Imitation(Classification()), Imitation()):
            one = evaluate(network(True), source, task, reference=network(False), batch_size=7)
            found.append(torch.tensor([one.value, *one.details.values(), *one.support]))
    return found


def only_a_share_is_read() -> None:
    seen = list[int]()

    class Reads(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            seen.append(index)
            return torch.zeros(3, 6, 6), index % 4

    for source in (Reads(), DataLoader(Reads(), batch_size=8)):
        seen.clear()
        with processes.sharing():
            sizes = [len(x) for x, _ in batches_of(source, 8, share=processes.share(least=2))]
            assert sizes == [4, 4, 2]
            assert sorted(chain(*processes.gathered(list(seen)))) == list(range(20))


CASES: dict[str, Callable[[], list[Tensor]]] = {
    **{f"calibrate {name}": partial(calibrated, name) for name in SOME},
    **{f"repair {name}": partial(repaired, name) for name in SOME},
    "finetune a dataset": lambda: finetuned(arrays().train),
    "finetune augmented images": lambda: finetuned(Augmented(arrays().train, padding=1)),
    "finetune with normalisation": lambda: finetuned(arrays().train, normalised=True),
    "finetune a loader": lambda: finetuned(DataLoader(arrays().train, batch_size=19, shuffle=True)),
    "finetune batches": lambda: finetuned(list(loaders()["train"])),
    "heal": healed,
    "measure": measured,
}


def main(file: str) -> None:
    found = {}
    with processes.sharing():
        for name, computed in CASES.items():
            found[name] = computed()
            for tensors in zip(*processes.gathered(found[name]), strict=True):
                assert all(torch.equal(tensors[0], other) for other in tensors), f"they disagree: {name}"
    only_a_share_is_read()
    if processes.launched()[0] == 0:
        torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
