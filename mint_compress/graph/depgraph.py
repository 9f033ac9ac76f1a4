"""Torch-Pruning's dependency graph, within limits, and its groups translated."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_compress.graph.groups import ChannelGroup, Member, Side
from mint_compress.graph.label_tracing import HEAD
from mint_compress.nn.layers import side_channels

VISITS, LOOKUPS, INDICES = 5_000, 100_000, 5_000_000
"""Steps through Torch-Pruning's graph, through its search for widths, and indices that it maps, before
it is given up."""


class TooCostly(Exception):
    """Torch-Pruning's search explodes."""


def torch_pruning_groups(model: nn.Module, inputs: tuple[Any, ...]) -> list[ChannelGroup]:
    """The groups of Torch-Pruning's graph, in its order; none of them is proved.

    Raises
    ------
    TooCostly
        More than ``VISITS``, ``LOOKUPS`` or ``INDICES``; and whatever Torch-Pruning raises.
    """
    graph, raw_groups = _torch_pruning(model, inputs)
    names: dict[Any, str] = {m: n for n, m in model.named_modules()}
    names.update((p, n) for n, p in model.named_parameters())
    return [_channel_group(graph, raw, names) for raw in raw_groups]


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
        total = side_channels(target.module, kind, side, dim)
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
    return group if reason else group.checked()


def _distinct(members: list[Member]) -> tuple[Member, ...]:
    seen: dict[tuple[str, str], Member] = {}
    for member in members:
        seen.setdefault((member.layer, member.side), member)
    return tuple(seen.values())


def _channel_groups(module: Any, kind: str) -> int:
    if kind == "conv":
        return int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1
