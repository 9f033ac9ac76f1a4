"""One architecture of the coverage table: everything that has to work with it, in a process of its own.

    python benchmarks/one_model.py torchvision:resnet18 FOLDER random

Writes what it finds, step by step, to FOLDER/log.jsonl; ``model_coverage.py`` says what "worked" means.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mint_compress as mc
from mint_compress.checkpoints.loading import Builder
from mint_compress.checkpoints.registry import TIERS, original_input_shape
from mint_compress.data.synthetic import synthetic_images
from mint_compress.estimators import uses_samples
from mint_compress.exporting.export_part import find_part
from mint_compress.graph.engine_comparison import compared
from mint_compress.nn.counting import parameters
from mint_compress.nn.detectors import everything_raw, is_detector
from mint_compress.nn.io import tensors_in
from mint_compress.planning.search import most_removed

RATIO = 0.5
SIDES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 331, 384, 448, 512, 1024)
TRAINING_BATCH = 4
IMAGES = 16
DETECTORS_SIDE = 128
"""Pixels: torchvision's detectors enlarge every image to 800 otherwise."""
COMPARED = 30
"""Seconds of analysis above which the two engines that find groups are not compared."""
LOADED = 1e-5
"""Largest difference of a loaded network's outputs, relative: its tensors lie elsewhere in memory."""


class Log:
    """What the parent may read at any time, also after it has killed this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}

    def __call__(self, **found: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say what is being done, and afterwards how long it took."""
        self(step=name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self(seconds=self.seconds)


def examine(name: str, folder: Path, estimator: str, log: Log) -> tuple[nn.Module, Tensor]:
    """Do everything with one model that has to work; an exception says what did not.

    Returns the model, unchanged, and an image.
    """
    with log.step("build"):
        model = built(name)
        mc.separate_attention_(model)
    with log.step("find the smallest input"):
        shape = smallest_input(model, name)
    log(input="x".join(map(str, shape)), parameters=parameters(model))
    batches = synthetic_images(IMAGES, shape, seed=0).split(IMAGES // 2)
    with log.step("analyse"):
        groups = mc.find_groups(model, batches[0][:1])
        most = most_removed(groups, mc.Budget(round_to=8))
    reachable = most.removed if most else 0.0
    # without the figures and names that follow in brackets
    reasons = Counter((g.reason or "").partition(" (")[0] for g in groups if not g.prunable)
    log(groups=len(groups), prunable=sum(g.prunable for g in groups), reachable=reachable, reasons=reasons)
    if most is None:
        raise mc.MintError(f"nothing can go: {'; '.join(reasons)}")
    with log.step("score"):
        scores = scored(model, groups, batches, estimator)
    with log.step("plan"):
        # below 50 % the rest is tried at what there is
        plan = mc.plan(groups, scores, mc.Budget(min(RATIO, reachable)))
    with log.step("remove"):
        pruned = mc.prune_(copy.deepcopy(model), plan)
    with log.step("repair"):
        mc.compensate_(pruned, model, plan, batches, seed=0)
    left = parameters(pruned)
    log(removed=1 - left / parameters(model))
    finish(name, model, pruned, plan, torch.cat(batches), folder, log)
    return model, batches[0][:1]


def scored(
    model: nn.Module, groups: Sequence[mc.ChannelGroup], batches: Sequence[Tensor], estimator: str
) -> mc.ChannelScores:
    """Scores of the prunable groups; ``random`` ones take no time."""
    if estimator != "random":
        samples = uses_samples(estimator)
        seen = mc.calibrate(model, groups, batches, seed=0, moments=not samples, samples=samples)
        return mc.score(groups, seen, estimator=estimator, seed=0)
    draw = torch.Generator().manual_seed(0)
    nats = {g.name: torch.rand(g.width, generator=draw) for g in groups if g.prunable}
    return mc.ChannelScores(nats, estimator, images=0, seed=0)


def finish(
    name: str,
    model: nn.Module,
    pruned: nn.Module,
    plan: mc.PruningPlan,
    images: Tensor,
    folder: Path,
    log: Log,
) -> None:
    """Forward, training step, save, load, export, receipt and parity of the pruned network."""
    few = images[:TRAINING_BATCH]
    with log.step("forward"):
        finite(outputs(pruned, few), "the outputs")
    with log.step("training step"):
        training_step(pruned, few)
        finite(outputs(pruned, few), "the outputs after a training step")
    with log.step("save"):
        mc.save(pruned, folder / "m.safetensors", builder=Builder(name), plan=plan.to_dict())
    with log.step("load"):
        known = name.partition(":")[0] in TIERS
        loaded = mc.load(folder / "m.safetensors", builder=None if known else lambda: built(name))
        check_same(loaded, pruned, few)
    part = find_part(loaded, None).of(loaded)
    with log.step("export"):
        exported = mc.export(part, (images[:2],), folder / "m.onnx")
    with log.step("verify"):
        _, parity = mc.verify(
            model, loaded, exported, images, predicted=plan.left, device="cpu",
            tensors_path=folder / "m.safetensors", part=part,
        )  # fmt: skip
    log(parity=parity.max_rel)


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """All outputs, in eval mode; of a detector that is not trained, what its heads say."""
    with torch.no_grad():
        network.eval()
        given = everything_raw(network, images) if is_detector(network) else network(images)
        return list(tensors_in(given))


def check_same(loaded: nn.Module, saved: nn.Module, images: Tensor) -> None:
    """Compare tensors bit by bit and outputs up to rounding."""
    one, other = loaded.state_dict(), saved.state_dict()
    if one.keys() != other.keys() or not all(torch.equal(one[k], other[k]) for k in one):
        raise mc.CheckFailed("the loaded network has other tensors than the saved one")
    for a, b in zip(outputs(loaded, images), outputs(saved, images), strict=True):
        if not bool((a - b).abs().max() <= LOADED * b.abs().max()):
            raise mc.CheckFailed("the loaded network gives other outputs than the saved one")


def built(name: str) -> nn.Module:
    """The architecture with random weights, always the same ones."""
    torch.manual_seed(0)
    tier, _, leaf = name.partition(":")
    if tier == "ultralytics":
        from ultralytics import YOLO

        yolo: nn.Module = YOLO(f"{leaf}.yaml").model  # of a file in the package: random weights
        return yolo.float().eval()
    if tier == "timm":
        import timm

        made: nn.Module = timm.create_model(leaf, pretrained=False)
        return made.eval()
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    module = models.get_model_builder(leaf).__module__
    if module.startswith(("torchvision.models.segmentation", "torchvision.models.detection")):
        options["weights_backbone"] = None
    if "detection" in module and not leaf.startswith("ssd"):
        options |= {"min_size": DETECTORS_SIDE, "max_size": DETECTORS_SIDE}
    if leaf in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # half a minute of scipy; PyTorch's own random weights do
    made = models.get_model(leaf, **options)
    return made.eval()


def smallest_input(model: nn.Module, name: str) -> tuple[int, ...]:
    """The smallest square image that the network evaluates and trains on."""
    if is_detector(model):
        transform: Any = model.transform
        return (3, *(transform.fixed_size or (transform.max_size,) * 2))
    own = original_input_shape(name) if name.partition(":")[0] in TIERS else (3, 640, 640)
    for shape in (*((own[0], side, side) for side in SIDES), own):
        with torch.no_grad():
            try:
                # trained on last: BatchNorm's statistics are then those of some images
                model.eval()(torch.randn(2, *shape))
                model.train()(torch.randn(TRAINING_BATCH, *shape))
            except Exception as error:  # what an architecture says of a size it does not take
                refused = error
            else:
                model.eval()
                return shape
    raise RuntimeError(f"no input is accepted, {own} neither: {refused}")


def training_step(model: nn.Module, images: Tensor) -> None:
    """One step of SGD on all outputs, towards their first class."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if is_detector(model):
        losses = list(model(list(images), [target_of(image) for image in images]).values())
    else:
        losses = [-out.log_softmax(1)[:, 0].mean() for out in tensors_in(model(images))]
    loss = torch.stack(losses).sum()
    loss.backward()
    finite([loss, *(p.grad for p in model.parameters() if p.grad is not None)], "the gradients")
    optimizer.step()
    model.eval()


def target_of(image: Tensor) -> dict[str, Tensor]:
    """One object in the middle of an image, with a mask, and a person's 17 points."""
    height, width = image.shape[1:]
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
    points = torch.tensor([width / 3, height / 3, 1.0]).expand(1, 17, 3)
    return {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "keypoints": points}


def finite(tensors: Sequence[Tensor], what: str) -> None:
    """Refuse NaN and infinity, and nothing at all."""
    if not tensors or not all(bool(t.isfinite().all()) for t in tensors):
        raise ArithmeticError(f"{what} are not finite")


def main(name: str, folder: Path, estimator: str, *, compare: bool) -> None:
    """Examine a model and note how it ended."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    log = Log(folder / "log.jsonl")
    try:
        model, image = examine(name, folder, estimator, log)
    except Exception as error:  # whatever it is, it is the result
        kind = "" if isinstance(error, (mc.MintError, mc.CheckFailed)) else f"{type(error).__name__}: "
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = (kind + " ".join(str(error).split()))[:400]
        log(error=said, at=f"{Path(where.filename).name}:{where.lineno}")
    else:
        log(done=True)
        if compare and log.seconds["analyse"] <= COMPARED:
            # Torch-Pruning's graph and the labels: do they find the same groups, and who is right where not?
            log(engines=str(compared(model, image)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], compare="--skip-engines" not in sys.argv[4:])
