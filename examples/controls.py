"""Other criteria at exactly the same parameter count, for comparison: magnitude and random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from mint_compress.channels import ChannelGroup
from mint_compress.planning import PruningPlan, make_plan


def magnitude(
    model: nn.Module, groups: Sequence[ChannelGroup], example: torch.Tensor
) -> dict[str, np.ndarray]:
    """Torch-Pruning's group L2 magnitude (its defaults), per position of each prunable group."""
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    names = {module: name for name, module in model.named_modules()}
    prunable = {g.name: g for g in groups if g.prunable}
    found = {}
    for group in tp.DependencyGraph().build_dependency(model, example).get_all_groups():
        name = names[group[0].dep.target.module]
        if name in prunable:
            values = importance(group).detach().cpu().numpy()
            found[name] = values.reshape(-1, prunable[name].width).mean(0)
    return found


def random(groups: Sequence[ChannelGroup], seed: int) -> dict[str, np.ndarray]:
    """Uniform noise."""
    generator = np.random.default_rng(seed)
    return {g.name: generator.random(g.width) for g in groups if g.prunable}


def uniform_plan(
    groups: Sequence[ChannelGroup], scores: Mapping[str, np.ndarray], parameters: int, *, round_to: int = 1
) -> PruningPlan:
    """About the same share of every group goes, lowest scores first, until ``parameters`` are left.

    Positions go in the order of their rank within their group, as a share of its width, one at a time
    over all groups: so the count is met as closely as by a plan of this project.
    """
    ranks = {name: np.argsort(np.argsort(values, kind="stable")) for name, values in scores.items()}
    order = sorted(((rank + 0.5) / len(own), name) for name, own in ranks.items() for rank in range(len(own)))

    def cut(count: int) -> PruningPlan:
        gone = Counter(name for _, name in order[:count])
        masks = {}
        for name, rank in ranks.items():
            step = round_to if len(rank) > round_to else 1
            masks[name] = rank < min(gone[name] // step * step, len(rank) - 1)
        return make_plan(groups, masks, asked=1 - parameters / groups[0].network.parameters)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if cut(middle).parameters[1] <= parameters:
            high = middle
        else:
            low = middle + 1
    return cut(low)
