"""Consumers' conditional mutual information, as one score per position of each channel group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mint_compress.allocator import trim_memory
from mint_compress.estimators import find_estimator, uses_samples
from mint_compress.graph.groups import ChannelGroup
from mint_compress.progress import Progress
from mint_compress.scoring.calibration import Calibration
from mint_compress.scoring.moment_scores import moment_scores
from mint_compress.scoring.sample_scores import sample_scores


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """How much information each position of each prunable group carries.

    Attributes
    ----------
    nats
        Group name -> ``(width,)`` float64: conditional mutual information of that position's
        channels with the outputs of the layers that read them, given the other inputs, summed over
        readers; over a reader's outputs averaged with moments, summed with samples. With moments, the
        outputs are observed with noise that costs the network the same in each of them, so that those
        count that it depends on. With backward elimination it is the loss at the step at which the
        position went, made strictly increasing, so that sorting gives the order of removal back.
    estimator, images, seed
        Where the figures come from.
    """

    nats: Mapping[str, Tensor] = field(repr=False)
    estimator: str
    images: int
    seed: int


def score(
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    *,
    estimator: str = "gaussian",
    backward: bool = True,
    blocks: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> ChannelScores:
    """Score every position of every prunable group.

    Parameters
    ----------
    groups
        From :func:`find_groups`.
    calibration
        From :func:`calibrate` with the same groups.
    estimator
        ``gaussian`` (backward elimination on second moments of patches, see
        :mod:`mint_compress.estimators.regression`) or another name known to
        :func:`mint_compress.estimators.find_estimator`, which scores samples of spatial means.
    backward
        Of ``gaussian``: eliminate step by step. False scores every position once, all others being
        given, for comparison: two copies of a channel then both look dispensable.
    blocks
        Number of contiguous, nearly equal blocks a group's positions are scored in; 0: one by one.
    seed
        For estimators that draw.

    Returns
    -------
    ChannelScores

    Raises
    ------
    MintError
        An unknown estimator, or a calibration without what the estimator needs.
    """
    prunable = [g for g in groups if g.prunable]
    trim_memory()
    if uses_samples(estimator):
        nats = sample_scores(prunable, calibration, find_estimator(estimator), blocks, seed, progress)
    else:
        nats = moment_scores(prunable, calibration, backward, blocks, progress)
    return ChannelScores(nats, estimator, calibration.images, seed)
