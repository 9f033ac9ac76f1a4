"""Finding the channel groups of a network: Torch-Pruning's dependency graph, translated and proved."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_compress.channels import UNREACHED, ChannelGroup, LayerShape, Member, Network, Side
from mint_compress.counting import CONVOLUTIONS, NORMS, WEIGHTED, Progress, layer_macs, shared_parameters
from mint_compress.devices import device_of
from mint_compress.errors import MintError, first_line
from mint_compress.features import input_groups
from mint_compress.inputs import Inputs, by_position
from mint_compress.patches import in_channels, out_channels
from mint_compress.proving import map_faults
from mint_compress.removal import removable
from mint_compress.slicing import rows_beside
from mint_compress.tracing import HEAD, Trace
from mint_compress.twins import TOLERANCE, Reference, change, float64_twin, reference_run, training_flags

log = logging.getLogger(__name__)

VISITS, LOOKUPS, INDICES = 5_000, 100_000, 5_000_000
"""Steps through Torch-Pruning's graph, through its search for widths, and indices that it maps, before
it is given up."""

STEPS = 3
"""Of the analysis: following the channels, Torch-Pruning's graph, the trace."""


class TooCostly(Exception):
    """Torch-Pruning's search explodes."""


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
    :class:`mint_compress.tracing.Trace` finds, tested likewise. A group that fails is returned with
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
        group can remove. A layer that loses some becomes one that selects (:mod:`mint_compress.selection`).
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
    tell("analyse", 1, STEPS)
    found = None
    if not trace.beyond_graph:
        found = _from_graph(reference, ignored, trace)
    tell("analyse", 2, STEPS)
    if found is None and trace.complete:
        found = _proved(reference, _structural(trace.groups()), ignored)
    if found is None:
        raise MintError("The network is too costly to analyse as a whole; prune its parts one by one.")
    tell("analyse", STEPS, STEPS)
    traced = {m.layer for g in found for m in g.members if m.side != "in"} | {g.name for g in found}
    found += _untraced(reference.model, traced, trace.odd)
    found += input_groups(reference, found, prune_inputs)
    network = _network(model, inputs, found)
    return [replace(group, network=network) for group in found]


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
        graph, raw_groups = _torch_pruning(reference.model, reference.inputs)
    except Exception as error:  # Torch-Pruning fails in many ways; the trace is there for that
        log.debug("no dependency graph: %s", first_line(error))
        return None
    names: dict[Any, str] = {m: n for n, m in reference.model.named_modules()}
    names.update((p, n) for n, p in reference.model.named_parameters())
    groups = [_channel_group(graph, raw, names) for raw in raw_groups]
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


def _torch_pruning(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Torch-Pruning's graph and its groups, within ``VISITS``, ``LOOKUPS`` and ``INDICES``."""
    import torch_pruning as tp

    count = {"visits": 0, "lookups": 0, "indices": 0}

    def step(what: str, limit: int, by: int = 1) -> None:
        count[what] += by
        if count[what] > limit:
            raise TooCostly(f"{limit} {what}")

    class Limited(tp.DependencyGraph):  # type: ignore[misc,name-defined]
        # inferring a width goes through the graph by recursion, asking these at every node
        def get_in_channels(self, node: Any) -> Any:
            step("lookups", LOOKUPS)
            return super().get_in_channels(node)

        def get_out_channels(self, node: Any) -> Any:
            step("lookups", LOOKUPS)
            return super().get_out_channels(node)

    def counted(ask: Any) -> Any:
        def is_triggered_by(handler: Any) -> Any:
            step("visits", VISITS)
            return ask(handler)

        return is_triggered_by

    class Limits(list[Any]):
        # flattening makes as many indices of one as there are places, again and again
        def __iter__(self) -> Iterator[Any]:
            return (m and partial(self.mapped, m) for m in super().__iter__())

        def mapped(self, mapping: Any, indices: Any) -> Any:
            step("indices", INDICES, len(indices) * getattr(mapping, "_stride", 1))
            return mapping(indices)

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = Limited().build_dependency(model, inputs, verbose=False)
        for node in graph.module2node.values():
            for dependency in node.dependencies:
                dependency.is_triggered_by = counted(dependency.is_triggered_by)
                dependency.index_mapping = Limits(dependency.index_mapping)
        return graph, list(graph.get_all_groups())


def _channel_group(graph: Any, raw: Any, names: dict[Any, str]) -> ChannelGroup:
    """Translate one Torch-Pruning group: drop its operators, keep layers, map channels to positions."""
    import torch_pruning as tp

    kinds = {
        tp.ops.OPTYPE.CONV: "conv",
        tp.ops.OPTYPE.DEPTHWISE_CONV: "depthwise",
        tp.ops.OPTYPE.LINEAR: "linear",
        tp.ops.OPTYPE.BN: "norm",
        tp.ops.OPTYPE.LN: "norm",
        tp.ops.OPTYPE.GN: "norm",
        tp.ops.OPTYPE.IN: "norm",
        tp.ops.OPTYPE.PRELU: "norm",
        tp.ops.OPTYPE.EMBED: "embedding",
        tp.ops.OPTYPE.PARAMETER: "parameter",
    }
    members: list[Member] = []
    reason = None
    for item in raw:
        target, handler = item.dep.target, item.dep.handler
        is_out = graph.is_out_channel_pruning_fn(handler)
        if target.type == tp.ops.OPTYPE.OUTPUT or (not target.outputs and is_out and target.module in names):
            reason = HEAD
        if target.module not in names or target.type == tp.ops.OPTYPE.ELEMENTWISE:
            continue
        if target.type == tp.ops.OPTYPE.PRELU and target.module.num_parameters == 1:
            continue
        if target.type not in kinds:
            reason = reason or f"{type(target.module).__name__} cannot be cut ({names[target.module]})"
            continue
        kind = kinds[target.type]
        both = kind not in ("conv", "linear", "embedding")
        side: Side = "both" if both else "out" if is_out else "in"
        dim = target.pruning_dim if kind == "parameter" else 0
        total = _channels(target.module, kind, side, dim)
        layer = names[target.module]
        if not item.idxs or not 0 <= min(item.idxs) <= max(item.idxs) < total:
            reason = reason or f"wrong channel map (it leaves the {total} channels of {layer})"
            continue
        channels = np.asarray(item.idxs, dtype=np.int64)
        roots = np.asarray(item.root_idxs, dtype=np.int64)
        order = np.argsort(channels, kind="stable")
        splits = _channel_groups(target.module, kind)
        members.append(Member(layer, kind, side, channels[order], roots[order], splits, dim, total))
    fold = max((m.channel_groups for m in members), default=1)
    name = names[raw[0].dep.target.module]
    width, left = divmod(len(raw[0].idxs), fold)
    if left:
        return ChannelGroup(name, len(raw[0].idxs), tuple(members), False, "channel groups do not divide it")
    distinct = _distinct([replace(m, positions=m.positions % width) for m in members])
    group = ChannelGroup(name, width, distinct, reason is None, reason)
    return group if reason else _structural_fault(group)


def _distinct(members: list[Member]) -> tuple[Member, ...]:
    seen: dict[tuple[str, str], Member] = {}
    for member in members:
        seen.setdefault((member.layer, member.side), member)
    return tuple(seen.values())


def _channel_groups(module: Any, kind: str) -> int:
    if kind == "conv":
        return int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1


def _channels(module: Any, kind: str, side: Side, dim: int) -> int:
    if kind in ("conv", "depthwise", "linear"):
        return in_channels(module) if side == "in" else out_channels(module)
    if kind == "parameter":
        return int(module.shape[dim])
    return int(module.weight.shape[-1] if kind == "embedding" else _norm_width(module))


def _norm_width(module: Any) -> int:
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    return int(module.normalized_shape[-1])


def _structural_fault(group: ChannelGroup) -> ChannelGroup:
    """Refuse what the slicing functions cannot do, whatever the permutation check says."""
    if not group.consumers:
        return group.left_alone("no layer reads it")
    if group.width < 2:
        return group.left_alone("only one channel")
    for member in group.members:
        if member.channel_groups == 1:
            continue
        whole = np.array_equal(member.channels, np.arange(member.total))
        blocks = member.positions.reshape(member.channel_groups, -1) if whole else None
        # every channel group must lose the same positions, at the same offsets
        if blocks is None or (blocks != blocks[0]).any():
            return group.left_alone(
                f"its channels cross the channel groups of a convolution ({member.layer})"
            )
    return group


def _structural(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    return [_structural_fault(g) if g.prunable else g for g in groups]


def _untraced(model: nn.Module, known: set[str], odd: Mapping[str, str]) -> list[ChannelGroup]:
    """Weighted layers that are in no group: never reached, or used in ways of their own."""
    return [
        ChannelGroup(name, int(m.weight.shape[0]), (), False, odd.get(name, UNREACHED))
        for name, m in model.named_modules()
        if isinstance(m, WEIGHTED) and name not in known and not _is_depthwise(m)
    ]


def _network(model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]) -> Network:
    """Count every module that owns parameters; one that several modules share counts at the first."""
    where = device_of(model)
    macs = layer_macs(model, tuple(x.to(where) if isinstance(x, torch.Tensor) else x for x in inputs))
    bare = {m.layer: m for g in groups for m in g.members if m.kind == "parameter"}
    layers: dict[str, LayerShape] = {}
    owned: set[int] = set()
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in owned}
        owned.update(id(p) for p in own.values())
        for key in [n for n in own if (f"{name}.{n}" if name else n) in bare]:
            full = f"{name}.{key}" if name else key
            size = own.pop(key)
            layers[full] = LayerShape(outputs=size.shape[bare[full].dim], weights=size.numel())
        if own:
            layers[name] = _layer_shape(module, own, macs.get(name, 0))
    return Network(layers)


def _layer_shape(module: Any, own: Mapping[str, nn.Parameter], macs: int) -> LayerShape:
    sizes = {n: p.numel() for n, p in own.items()}
    weights, bias = sizes.pop("weight", 0), sizes.pop("bias", 0)
    fixed = sum(sizes.values())
    if isinstance(module, WEIGHTED):
        inputs, outputs = 0 if _is_depthwise(module) else in_channels(module), out_channels(module)
        beside = sum(sizes[n] for n in rows_beside(module) if n in sizes)
        per_output = int(bias > 0) + beside // outputs
        return LayerShape(inputs, outputs, weights, per_output, fixed - beside, macs)
    if isinstance(module, (*NORMS, nn.Embedding)):
        outputs = _channels(module, "norm" if isinstance(module, NORMS) else "embedding", "both", 0)
        if weights % outputs == 0 and bias in (0, outputs):
            return LayerShape(0, outputs, weights, int(bias > 0), fixed)
    return LayerShape(fixed=fixed + weights + bias)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels
