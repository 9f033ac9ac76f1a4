"""Finding the channel groups of a network: Torch-Pruning's dependency graph, translated and proved."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mint_compress.errors import MintError, first_line
from mint_compress.graph.cost_count import network_of
from mint_compress.graph.costs import Network
from mint_compress.graph.depgraph import torch_pruning_groups
from mint_compress.graph.groups import UNREACHED, ChannelGroup
from mint_compress.graph.input_groups import input_groups
from mint_compress.graph.label_tracing import HEAD, Trace
from mint_compress.graph.permutation_check import map_faults
from mint_compress.graph.reference import TOLERANCE, Reference, change, float64_twin, reference_run
from mint_compress.graph.removal_check import plan_faults, removable
from mint_compress.nn.contexts import training_flags
from mint_compress.nn.counting import shared_parameters
from mint_compress.nn.io import Inputs, by_position
from mint_compress.nn.layers import WEIGHTED, is_depthwise
from mint_compress.progress import Progress
from mint_compress.surgery.pruning_plan import PruningPlan

log = logging.getLogger(__name__)

STEPS = 3
"""Of the analysis: following the channels, Torch-Pruning's graph, the trace."""


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
    whose windows and heads make its search explode, the groups are those that
    :class:`mint_compress.graph.label_tracing.Trace` finds, tested likewise. A group that fails is returned with
    ``prunable=False`` and the reason.

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
        group can remove. A layer that loses some becomes one that selects (:mod:`mint_compress.nn.input_selection`).
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
    ignored = _matching(model, ignore)
    with by_position(model, example_inputs) as inputs:
        return _found(model, inputs, ignored, tuple(prune_inputs), progress or (lambda *_: None))


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
        twin, inputs = float64_twin(model, inputs)
        faults = plan_faults(reference_run(twin, inputs), groups, plan)
    return [g.left_alone(faults[g.name]) if g.name in faults else g for g in groups]


def _found(
    model: nn.Module,
    inputs: tuple[Any, ...],
    ignored: set[str],
    prune_inputs: Sequence[str],
    tell: Progress,
) -> list[ChannelGroup]:
    if isinstance(model, torch.jit.ScriptModule):
        raise MintError("TorchScript cannot be pruned. Give the module that it was made from.")
    tell("analyse", 0, STEPS)
    reference, trace = _followed(model, inputs)
    if change(reference.outputs, reference.run()) > TOLERANCE:
        raise MintError(
            "In eval mode the network gives other outputs for the same inputs each time (F.dropout without "
            "training=self.training, or random numbers in its forward pass). Make it repeatable first."
        )
    tell("analyse", 1, STEPS)
    found = None
    if not trace.beyond_graph:
        found = _from_graph(reference, ignored, trace)
    tell("analyse", 2, STEPS)
    if found is None and trace.complete:
        found = _proved(reference, [g.checked() if g.prunable else g for g in trace.groups()], ignored)
    if found is None:
        raise MintError("The network is too costly to analyse as a whole; prune its parts one by one.")
    tell("analyse", STEPS, STEPS)
    traced = {m.layer for g in found for m in g.members if m.side != "in"} | {g.name for g in found}
    found += _untraced(reference.model, traced, trace.odd)
    found += input_groups(reference, found, prune_inputs)
    network = network_of(model, inputs, found)
    return [replace(_watched(group, network), network=network) for group in found]


def _followed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Reference, Trace]:
    """A float64 twin, run; and what following its channels has shown."""
    twin, inputs = float64_twin(model, inputs)
    try:
        reference = reference_run(twin, inputs)
    except Exception as error:
        # anything a user's forward can raise comes out here
        raise MintError(
            f"The network could not be traced: {first_line(error)}. "
            "Check --input-shape, or run its forward on such an input."
        ) from error
    trace = Trace(twin)
    try:
        trace.run(reference.inputs)
    except Exception as error:
        # an operation that meets labels in a way nobody thought of
        said = first_line(error)
        log.warning("the channels could not be followed (%s); Torch-Pruning's graph alone is used", said)
        log.debug("where that was", exc_info=True)
        return reference, trace
    unseen = {n for n, m in twin.named_modules() if isinstance(m, WEIGHTED)} - trace.reached
    if not unseen:
        return reference, trace
    return _with_training(reference, inputs, trace)


def _with_training(reference: Reference, inputs: tuple[Any, ...], trace: Trace) -> tuple[Reference, Trace]:
    """The same with the network's way in training, when that reaches more layers."""
    twin, before = reference.model, trace.reached
    try:
        both = reference_run(twin, inputs, in_training=True)
        with training_flags(twin):
            trace.run(both.inputs)
    except Exception:  # a user's forward, on a way that it may never have taken
        log.info("the network cannot be run as in training; layers that only training uses stay")
        trace.complete = True  # the pass before this one was
        return reference, trace
    late = trace.reached - before
    if not late:
        return reference, trace
    trace.beyond_graph, trace.late = True, late
    if change(both.outputs, both.run()) > TOLERANCE:
        trace.refuse(late, "only training uses a layer, and not twice in the same way")
        return reference, trace
    return both, trace


def _from_graph(reference: Reference, ignored: set[str], trace: Trace) -> list[ChannelGroup] | None:
    """Torch-Pruning's groups, proved; None when they are too costly or the trace can do better.

    It can when it is complete and a group is not right, or Torch-Pruning has no group for a layer.
    """
    whole = trace.complete
    try:
        groups = torch_pruning_groups(reference.model, reference.inputs)
    except Exception as error:  # Torch-Pruning fails in many ways; the trace is there for that
        log.debug("no dependency graph: %s", first_line(error))
        return None
    if whole and any(g.reason not in (None, HEAD) for g in groups):
        return None
    made = {m.layer for g in groups for m in g.members if m.side != "in"}
    if whole and trace.reached - trace.odd.keys() - made:
        return None
    return _proved(reference, groups, ignored, whole=whole)


def _proved(
    reference: Reference, groups: list[ChannelGroup], ignored: set[str], *, whole: bool = False
) -> list[ChannelGroup] | None:
    """The groups with what the proofs say of them; with ``whole``, None when any of them fails."""
    tied = shared_parameters(reference.model)
    told = []
    for group in groups:
        reason = group.reason or _ignored(group, ignored) or _shared(group, tied)
        told.append(group.left_alone(reason) if reason else group)
    generator = torch.Generator().manual_seed(0)
    reasons = map_faults(reference, told, generator, apart=not whole)
    found = [g.left_alone(r) if r else g for g, r in zip(told, reasons, strict=True)]
    if whole and any(f.prunable != t.prunable for f, t in zip(found, told, strict=True)):
        return None
    kept = removable(reference, found, apart=not whole)
    if whole and any(k.prunable != f.prunable for k, f in zip(kept, found, strict=True)):
        return None
    return kept


def _watched(group: ChannelGroup, network: Network) -> ChannelGroup:
    """The group, left alone when a reader cannot be watched at work: only its weight is used."""
    uncalled = [
        m.layer for m in group.consumers if m.layer in network.layers and not network.layers[m.layer].macs
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


def _ignored(group: ChannelGroup, ignored: set[str]) -> str | None:
    for member in group.members:
        if member.side != "in" and any(f"{member.layer}.".startswith(f"{name}.") for name in ignored):
            return f"ignored by the user ({member.layer})"
    return None


def _shared(group: ChannelGroup, tied: Mapping[str, str]) -> str | None:
    for member in group.members:
        if member.layer in tied:
            return f"its layers share a parameter ({member.layer} and {tied[member.layer]})"
    return None


def _untraced(model: nn.Module, known: set[str], odd: Mapping[str, str]) -> list[ChannelGroup]:
    """Weighted layers that are in no group: never reached, or used in ways of their own."""
    return [
        ChannelGroup(name, int(m.weight.shape[0]), (), False, odd.get(name, UNREACHED))
        for name, m in model.named_modules()
        if isinstance(m, WEIGHTED) and name not in known and not is_depthwise(m)
    ]
