"""Criteria for choosing channels, this project's and the usual ones, and two ways to share out a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

import mint_compress as mc
from mint_compress.estimators import uses_samples
from mint_compress.planning.choices import make_plan

Scores = dict[str, np.ndarray]
"""Group -> (width,), high is worth keeping."""

BATCH = 64


def random(model: nn.Module, groups: Any, images: Tensor, labels: Tensor, seed: int) -> Scores:
    """Uniform noise."""
    generator = np.random.default_rng(seed)
    return {g.name: generator.random(g.width) for g in groups if g.prunable}


def torch_pruning(importance: Any, *, gradients: bool = False) -> Callable[..., Scores]:
    """One of Torch-Pruning's own criteria, with its defaults, on its own groups."""

    def scores(model: nn.Module, groups: Any, images: Tensor, labels: Tensor, seed: int) -> Scores:
        if gradients:
            accumulate_gradients(model, images, labels)
        names = {module: name for name, module in model.named_modules()}
        prunable = {g.name: g for g in groups if g.prunable}
        found = {}

        def rate(name: str, group: Any) -> None:
            values = importance(group).detach().cpu().numpy()
            found[name] = values.reshape(-1, prunable[name].width).mean(0)

        graph = tp.DependencyGraph().build_dependency(model, images[:1])
        for group in graph.get_all_groups():
            name = names.get(group[0].dep.target.module, "")
            if name in prunable:
                rate(name, group)
        for group in (g for g in prunable.values() if not g.producers):  # what a layer reads of the inputs
            layer = model.get_submodule(group.members[0].layer)
            cut = graph.get_pruner_of_module(layer).prune_in_channels
            rate(group.name, graph.get_pruning_group(layer, cut, list(range(group.width))))
        model.zero_grad(set_to_none=True)
        return found

    return scores


def accumulate_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The mean gradient of the cross-entropy, which Taylor criteria read."""
    model.zero_grad()
    for some, right in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        (functional.cross_entropy(model(some), right, reduction="sum") / len(images)).backward()


def information(
    *, estimator: str = "gaussian", backward: bool = True, blocks: int = 0, images: int = 1024
) -> Callable[..., Scores]:
    """One of this project's scores. gmi and mint look at more images, and at blocks of channels."""

    def scores(model: nn.Module, groups: Any, drawn: Tensor, labels: Tensor, seed: int) -> Scores:
        samples = uses_samples(estimator)
        calibration = mc.calibrate(
            model, groups, drawn[:images].split(BATCH), seed=seed, moments=not samples, samples=samples
        )
        found = mc.score(
            groups, calibration, estimator=estimator, backward=backward, blocks=blocks, seed=seed
        )
        return {name: nats.cpu().numpy() for name, nats in found.nats.items()}

    return scores


CRITERIA: dict[str, Callable[..., Scores]] = {
    "gaussian, backward": information(),
    "gaussian, one shot": information(backward=False),
    "residual gmi": information(estimator="gmi", blocks=20, images=2500),
    "raw gmi (MINT)": information(estimator="mint", blocks=20, images=2500),
    "L1 magnitude": torch_pruning(tp.importance.GroupMagnitudeImportance(p=1)),
    "L2 magnitude": torch_pruning(tp.importance.GroupMagnitudeImportance(p=2)),
    "BatchNorm scale": torch_pruning(tp.importance.BNScaleImportance()),
    "Taylor": torch_pruning(tp.importance.GroupTaylorImportance(), gradients=True),
    "random": random,
}
OURS = "gaussian, backward"


def allocate(
    groups: Sequence[mc.ChannelGroup],
    scores: Mapping[str, np.ndarray],
    allocation: str,
    parameters: int,
    *,
    ratio: float,
    round_to: int = 1,
    upper_limit: float = mc.Budget.upper_limit,
) -> mc.PruningPlan:
    """The plan that removes, by a criterion, until at most ``parameters`` are left.

    Parameters
    ----------
    allocation
        ``uniform``: the same share of every group goes, so that every criterion gets the same widths.
        ``global``: one threshold over all groups, on each group's scores over their mean, as
        Torch-Pruning's global pruning does.
    """
    order = []
    for name, own in scores.items():
        rank = np.argsort(np.argsort(own, kind="stable"), kind="stable")
        value = (rank + 0.5) / len(own) if allocation == "uniform" else own / max(own.mean(), 1e-30)
        order += [(float(value[at]), name, at) for at in np.argsort(rank)]
    order.sort(key=lambda entry: entry[0])

    def cut(count: int) -> mc.PruningPlan:
        gone = Counter(name for _, name, _ in order[:count])
        masks = {}
        for name, own in scores.items():
            rank = np.argsort(np.argsort(own, kind="stable"), kind="stable")
            step = round_to if len(own) > round_to else 1
            most = min(len(own) - 1, int(upper_limit * len(own)))
            masks[name] = rank < min(gone[name] // step * step, most)
        return make_plan(groups, masks, asked=ratio)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if cut(middle).parameters[1] <= parameters:
            high = middle
        else:
            low = middle + 1
    return cut(low)
