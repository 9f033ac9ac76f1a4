"""Finding the channel groups of a network: Torch-Pruning's dependency graph, translated and proved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_compress.channels import ChannelGroup, LayerShape, Member, Network, Side
from mint_compress.counting import CONVOLUTIONS, NORMS, WEIGHTED, Progress, layer_macs, shared_parameters
from mint_compress.devices import device_of
from mint_compress.errors import MintError, first_line
from mint_compress.patches import in_channels, out_channels
from mint_compress.proving import float64_twin, map_fault, reference_run, removable


def find_groups(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | torch.Tensor,
    *,
    ignore: Iterable[str] = (),
    progress: Progress | None = None,
) -> list[ChannelGroup]:
    """Find all channel groups of a network and prove each map before it may be used.

    The groups come from Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023). Its
    index maps can be wrong without a sign, so every group is tested: its channels are permuted
    consistently in all layers, in float64; a right map leaves the outputs as they were. Then its
    first and its last position are taken out, which must do what ignoring them does. A group that
    fails is returned with ``prunable=False`` and the reason.

    Parameters
    ----------
    model
        Any network; it is not changed.
    example_inputs
        Inputs for one forward pass, batch dimension first.
    ignore
        fnmatch patterns of qualified layer names whose output channels stay, children included.
    progress
        Called as ("analyse", steps done, steps).

    Returns
    -------
    list of ChannelGroup
        In the order in which the graph was traced.

    Raises
    ------
    MintError
        A pattern that matches no layer, or a network that cannot be traced.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    ignored = _matching(model, ignore)
    tell = progress or (lambda *_: None)
    tell("analyse", 0, 1)
    twin, twin_inputs = float64_twin(model, inputs)
    graph, raw_groups = _trace(twin, twin_inputs)
    names: dict[Any, str] = {m: n for n, m in twin.named_modules()}
    names.update((p, n) for n, p in twin.named_parameters())
    groups = [_channel_group(graph, raw, names) for raw in raw_groups]
    reference = reference_run(twin, twin_inputs)
    generator = torch.Generator().manual_seed(0)
    tied = shared_parameters(twin)
    found = []
    for done, group in enumerate(groups):
        tell("analyse", done, len(groups) + 1)  # the last step is the trial removal
        reason = group.reason or _ignored(group, ignored) or _shared(group, tied)
        reason = reason or map_fault(reference, group, generator)
        found.append(group.left_alone(reason) if reason else group)
    tell("analyse", len(groups), len(groups) + 1)
    found = removable(reference, found)
    tell("analyse", len(groups) + 1, len(groups) + 1)
    traced = {m.layer for g in found for m in g.members if m.side != "in"} | {g.name for g in found}
    found += _untraced(twin, traced)
    network = _network(model, inputs, found)
    return [replace(group, network=network) for group in found]


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
            return f"{member.layer} shares a parameter with {tied[member.layer]}"
    return None


def _trace(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Torch-Pruning's graph and its groups."""
    import torch_pruning as tp

    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
            return graph, list(graph.get_all_groups())
    except Exception as error:
        # anything a user's forward can raise comes out here
        raise MintError(
            f"The network could not be traced: {first_line(error)}. "
            "Check --input-shape, or run its forward on such an input."
        ) from error


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
            reason = "head: its channels are the network's outputs"
        if target.module not in names or target.type == tp.ops.OPTYPE.ELEMENTWISE:
            continue
        if target.type == tp.ops.OPTYPE.PRELU and target.module.num_parameters == 1:
            continue
        if target.type not in kinds:
            reason = reason or f"{type(target.module).__name__} {names[target.module]} cannot be cut"
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
            return group.left_alone(f"its channels cross the channel groups of {member.layer}")
    return group


def _untraced(model: nn.Module, known: set[str]) -> list[ChannelGroup]:
    """Weighted layers that the traced pass never reached, such as auxiliary heads."""
    reason = "not traced: the forward pass does not reach it"
    return [
        ChannelGroup(name, int(m.weight.shape[0]), (), False, reason)
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
        inputs = 0 if _is_depthwise(module) else in_channels(module)
        return LayerShape(inputs, out_channels(module), weights, int(bias > 0), fixed, macs)
    if isinstance(module, (*NORMS, nn.Embedding)):
        outputs = _channels(module, "norm" if isinstance(module, NORMS) else "embedding", "both", 0)
        if weights % outputs == 0 and bias in (0, outputs):
            return LayerShape(0, outputs, weights, int(bias > 0), fixed)
    return LayerShape(fixed=fixed + weights + bias)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels
