"""Scores from samples: what the outputs of each reader are told by the positions, by any estimator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.estimators import Estimator
from mint_compress.graph.groups import ChannelGroup
from mint_compress.progress import Progress
from mint_compress.scoring.blocks import block_of
from mint_compress.scoring.calibration import Calibration


def sample_scores(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    estimate: Estimator,
    blocks: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """What each position says, by any estimator, summed over readers and their outputs."""
    nats = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in groups}
    jobs = [(g, m) for g in groups for m in g.consumers]
    for done, (group, member) in enumerate(jobs):
        if member.layer not in calibration.samples:
            raise MintError(
                f"The calibration holds no samples of layer {member.layer}. "
                "Calibrate with the same groups and samples=True."
            )
        parents, children = calibration.samples[member.layer]
        block = block_of(group.width, blocks)
        count = int(block[-1]) + 1
        # channels of other groups are parents too: they condition, as one block at the end
        labels = torch.full((parents.shape[1],), count)
        labels[torch.from_numpy(member.channels)] = block[torch.from_numpy(member.positions)]
        child_labels = block_of(children.shape[1], blocks)
        tell = partial(_pair_progress, progress, done, len(jobs))
        pairs = estimate(
            children, parents, child_groups=child_labels, parent_groups=labels, seed=seed, progress=tell
        )
        nats[group.name] += pairs.sum(0).cpu().double()[:count][block]
    return nats


def _pair_progress(
    progress: Progress | None, job: int, jobs: int, _stage: str, done: int, total: int
) -> None:
    """Each layer is an equal part of the whole bar, in thousandths."""
    if progress:
        progress("score", 1000 * job + 1000 * done // max(total, 1), 1000 * jobs)
