"""Finding the channel groups of a network: the answer of one of two engines, proved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mint_compress.errors import MintError
from mint_compress.graph.choosing import STEPS, Answer, chosen
from mint_compress.graph.cost_count import network_of
from mint_compress.graph.costs import Network
from mint_compress.graph.depgraph import TorchPruning
from mint_compress.graph.engines import Refused
from mint_compress.graph.groups import UNREACHED, ChannelGroup
from mint_compress.graph.input_groups import input_groups
from mint_compress.graph.label_groups import ChannelLabels
from mint_compress.graph.passes import followed
from mint_compress.graph.reference import TOLERANCE, change, reference_copy, reference_run
from mint_compress.graph.removal_check import plan_faults
from mint_compress.nn.io import Inputs, by_position
from mint_compress.nn.layers import WEIGHTED, is_depthwise
from mint_compress.progress import Progress
from mint_compress.surgery.pruning_plan import PruningPlan

log = logging.getLogger(__name__)


def find_groups(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ignore: Iterable[str] = (),
    prune_inputs: Iterable[str] = (),
    progress: Progress | None = None,
) -> list[ChannelGroup]:
    """Find all channel groups of a network and prove each map before it may be used.

    The groups come from Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023). Its
    index maps can be wrong without a sign. So every group is tested: its channels are permuted
    consistently in all layers, in float64; a right map leaves the outputs as they were. Then some of
    its first and last positions are taken out, which must do what ignoring them does. Where the
    graph is not right as a whole or takes more than ``VISITS`` steps, and for networks of tokens,
    whose windows and heads make its search explode, the groups are those that labels show
    (:class:`mint_compress.graph.label_tracing.Recorder`), tested likewise. A group that fails is returned
    with ``prunable=False`` and the reason.

    Layers that only training uses (auxiliary heads) are part of the groups that they read, and are
    tested with them, when the network's way through them can be taken without randomness.

    Parameters
    ----------
    model
        Any network; it is not changed.
    example_inputs
        Inputs for one forward pass, batch dimension first.
    ignore
        fnmatch patterns of qualified layer names whose output channels stay, children included.
    prune_inputs
        fnmatch patterns of layers that may leave out input channels by themselves, each as a group of
        its own, named ``inputs of LAYER``: layers that read the network's inputs, or channels that no
        group can remove. A layer that loses some becomes one that selects
        (:mod:`mint_compress.nn.input_selection`).
    progress
        Called as ("analyse", steps done, steps).

    Returns
    -------
    list of ChannelGroup
        In the order in which the graph was traced; groups of inputs last.

    Raises
    ------
    MintError
        A pattern that matches no layer or none that it could, or a network that cannot be run or traced.
    """
    answer = answered(model, example_inputs, ignore=ignore, prune_inputs=prune_inputs, progress=progress)
    return list(answer.groups)


def answered(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ignore: Iterable[str] = (),
    prune_inputs: Iterable[str] = (),
    progress: Progress | None = None,
) -> Answer:
    """What :func:`find_groups` does, and which engine found the groups.

    Parameters
    ----------
    model, example_inputs, ignore, prune_inputs, progress
        As for :func:`find_groups`.

    Returns
    -------
    Answer
        Its groups are what :func:`find_groups` returns.

    Raises
    ------
    MintError
        As :func:`find_groups` does.
    """
    ignored = _matching(model, ignore)
    with by_position(model, example_inputs) as inputs:
        return _answered(model, inputs, ignored, tuple(prune_inputs), progress or (lambda *_: None))


def after_trial(
    model: nn.Module, example_inputs: Inputs, groups: Sequence[ChannelGroup], plan: PruningPlan
) -> list[ChannelGroup]:
    """Leave those groups alone that cannot lose what a plan takes from them.

    :func:`find_groups` has taken out a few positions of each. What ``forward`` does may depend on the
    very widths that a plan leaves: a shortcut that is taken where two shapes are equal, a width that must
    be even. So the plan itself is tried, in float64: the network must do what it does when the layers
    ignore the channels that go.

    Parameters
    ----------
    model, example_inputs
        As given to :func:`find_groups`.
    groups
        What it found.
    plan
        Made from those groups.

    Returns
    -------
    list of ChannelGroup
        The same groups; some with ``prunable=False`` and the reason, if the plan fails.
    """
    with by_position(model, example_inputs) as inputs:
        reference_model, inputs = reference_copy(model, inputs)
        faults = plan_faults(reference_run(reference_model, inputs), groups, plan)
    return [g.left_alone(faults[g.name]) if g.name in faults else g for g in groups]


def _answered(
    model: nn.Module,
    inputs: tuple[Any, ...],
    ignored: set[str],
    prune_inputs: Sequence[str],
    tell: Progress,
) -> Answer:
    if isinstance(model, torch.jit.ScriptModule):
        raise MintError("TorchScript cannot be pruned. Give the module that it was made from.")
    tell("analyse", 0, STEPS)
    reference, recording = followed(*reference_copy(model, inputs))
    if change(reference.outputs, reference.run()) > TOLERANCE:
        raise MintError(
            "In eval mode the network gives other outputs for the same inputs each time (F.dropout without "
            "training=self.training, or random numbers in its forward pass). Make it repeatable first."
        )
    tell("analyse", 1, STEPS)
    answer = chosen(reference, TorchPruning(), ChannelLabels(recording), ignored, tell)
    log.debug("%s: %s", answer.engine, answer.why)
    tell("analyse", STEPS, STEPS)
    found = list(answer.groups)
    traced = {m.layer for g in found for m in g.members if m.side != "in"} | {g.name for g in found}
    unsliceable = {} if isinstance(recording, Refused) else recording.unsliceable
    found += _untraced(reference.model, traced, unsliceable)
    found += input_groups(reference, found, prune_inputs)
    network = network_of(model, inputs, found)
    return replace(answer, groups=[replace(_watched(group, network), network=network) for group in found])


def _watched(group: ChannelGroup, network: Network) -> ChannelGroup:
    """The group, left alone when a reader cannot be watched at work: only its weight is used."""
    uncalled = [
        m.layer for m in group.consumers if m.layer in network.layers and not network.layers[m.layer].called
    ]
    if group.prunable and uncalled:
        return group.left_alone(f"a layer that reads it is not called as one ({uncalled[0]})")
    return group


def _matching(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    names = [name for name, _ in model.named_modules() if name]
    hits: set[str] = set()
    for pattern in patterns:
        matched = {n for n in names if fnmatchcase(n, pattern)}
        if not matched:
            raise MintError(
                f"--ignore {pattern!r} matches no layer. Layers are named like {', '.join(names[:3])}."
            )
        hits |= {n for n in names for m in matched if n == m or n.startswith(m + ".")}
    return hits


def _untraced(model: nn.Module, known: set[str], unsliceable: Mapping[str, str]) -> list[ChannelGroup]:
    """Weighted layers that are in no group: never reached, or used in ways of their own."""
    return [
        ChannelGroup(name, int(m.weight.shape[0]), (), False, unsliceable.get(name, UNREACHED))
        for name, m in model.named_modules()
        if isinstance(m, WEIGHTED) and name not in known and not is_depthwise(m)
    ]
