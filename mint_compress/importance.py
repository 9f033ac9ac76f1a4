"""The scores as an importance for people who drive Torch-Pruning themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from mint_compress.errors import MintError
from mint_compress.estimators import uses_samples
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.nn.io import by_position, of_batch, select
from mint_compress.nn.layers import WEIGHTED
from mint_compress.progress import Progress
from mint_compress.scoring.calibration import calibrate
from mint_compress.scoring.scores import ChannelScores, score
from mint_compress.surgery.slicing import slicer_of


class MutualInformationImportance(tp.importance.Importance):  # type: ignore[misc]
    """Conditional mutual information as a Torch-Pruning importance.

    Scores are computed once, when the object is made, for the network as it is then; make a new one
    after pruning. Groups whose channel map fails the permutation check get no score, so that
    Torch-Pruning passes them over.

    Parameters
    ----------
    model
        The network that the pruner will prune.
    batches
        Calibration inputs, or (inputs, labels) pairs; labels are not looked at.
    estimator
        As in :func:`mint_compress.score`.
    seed
        Draws pixels, and whatever the estimator draws.

    Examples
    --------
    >>> importance = MutualInformationImportance(model, loader)  # doctest: +SKIP
    >>> pruner = tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5)  # doctest: +SKIP
    >>> pruner.step()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        estimator: str = "gaussian",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        batches = list(batches)
        if not batches:
            raise MintError("The importance needs at least one batch of images; none was given.")
        with by_position(model, select(of_batch(batches[0]), slice(1))) as example:
            self.groups: list[ChannelGroup] = find_groups(model, example, progress=progress)
        samples = uses_samples(estimator)
        calibration = calibrate(
            model, self.groups, batches, seed=seed, moments=not samples, samples=samples, progress=progress
        )
        self.scores: ChannelScores = score(
            self.groups, calibration, estimator=estimator, seed=seed, progress=progress
        )
        self._modules = set(model.modules())
        self._producers = _producers(model, self.groups)

    def __call__(self, group: Any) -> Tensor | None:
        """Score each index of a Torch-Pruning group; None for a group that must not be pruned.

        Parameters
        ----------
        group
            A ``torch_pruning`` group, full or partial.

        Returns
        -------
        Tensor or None
            ``(len(group[0].idxs),)`` float64 nats, in the order of the group's own indices.

        Raises
        ------
        MintError
            When the group has been pruned since it was scored, or belongs to another network.
        """
        root = group[0]
        layer = root.dep.target.module
        if isinstance(layer, WEIGHTED) and layer not in self._modules:
            raise MintError(
                "The pruner works on another network than the one that was scored. Give it the same module, "
                "not a copy."
            )
        found = self._producers.get(layer)
        # attention is pruned from the input side of its projection: those are no channels of ours
        if found is None or root.dep.handler.__name__ == "prune_in_channels":
            return None
        chosen, position = found
        width = int(slicer_of(layer).get_out_channels(layer))
        if width != len(position):
            raise MintError(
                f"Group {chosen.name} was scored {len(position)} wide and is {width} wide now. "
                "Make a new MutualInformationImportance after each pruning step."
            )
        at = torch.from_numpy(position[np.asarray(root.idxs, dtype=np.int64)])
        # in float32 scores that differ would tie, and a global threshold takes all that tie
        return self.scores.nats[chosen.name][at]


def _producers(
    model: nn.Module, groups: list[ChannelGroup]
) -> dict[nn.Module, tuple[ChannelGroup, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Module -> its group and the position of each of its output channels."""
    modules = dict(model.named_modules())
    found = {}
    for group in groups:
        for member in group.members if group.prunable else ():
            if member.side != "in" and member.kind != "parameter":
                position = np.zeros(member.total, dtype=np.int64)
                position[member.channels] = member.positions
                found[modules[member.layer]] = (group, position)
    return found
