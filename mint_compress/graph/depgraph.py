"""Torch-Pruning's dependency graph as an engine: searched within limits, its groups translated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mint_compress.errors import ForeignError, first_line, foreign
from mint_compress.graph.engines import Found, Refused
from mint_compress.graph.groups import HEAD, ChannelGroup, Member, Side
from mint_compress.graph.reference import Reference
from mint_compress.nn.layers import side_channels

VISITS, LOOKUPS, INDICES = 5_000, 100_000, 5_000_000
"""Steps through Torch-Pruning's graph, through its search for widths, and indices that it maps, before
it is given up."""


class TooCostly(Exception):
    """Torch-Pruning's search explodes."""


class TorchPruning:
    """Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023)."""

    name = "Torch-Pruning's graph"

    def groups(self, reference: Reference) -> Found | Refused:
        """The groups of the graph, in its order; refused where Torch-Pruning fails or takes too long."""
        model = reference.model
        try:
            with foreign("Torch-Pruning"):
                graph, raw_groups = _searched(model, reference.inputs)
        except ForeignError as error:
            return Refused(first_line(error.__cause__ or error))
        names: dict[Any, str] = {m: n for n, m in model.named_modules()}
        names.update((p, n) for n, p in model.named_parameters())
        return Found([_channel_group(_items(graph, raw, names)) for raw in raw_groups])


# ---- the search, within limits


class _Budget:
    """What the search may still spend."""

    def __init__(self) -> None:
        self._left = {"visits": VISITS, "lookups": LOOKUPS, "indices": INDICES}

    def spend(self, what: str, amount: int = 1) -> None:
        self._left[what] -= amount
        if self._left[what] < 0:
            raise TooCostly(f"its search takes too many {what}")


class _CountedMaps(list[Any]):
    """The index maps of one dependency; flattening makes as many indices of one as there are places."""

    def __init__(self, maps: Iterable[Any], budget: _Budget) -> None:
        super().__init__(maps)
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        return (None if m is None else partial(self._counted, m) for m in super().__iter__())

    def _counted(self, mapping: Any, indices: Any) -> Any:
        self._budget.spend("indices", len(indices) * getattr(mapping, "_stride", 1))
        return mapping(indices)


# Torch-Pruning 1.6.1 has no limits of its own and few places to put any. Its methods for widths can be
# overridden: the functions that infer a width by recursion ask them at every node. The walk that collects
# a group cannot, for it is a closure in get_pruning_group, nor can the class of the dependencies, which
# _build_dependency names. So the dependencies are replaced when that method has made them, by ones that
# count: the walk asks each whether it is triggered, and goes through its index maps.


@cache
def _limited_graph() -> type[Any]:
    """The class, made at its first use: importing Torch-Pruning takes a while."""
    import torch_pruning as tp
    from torch_pruning.dependency import Dependency

    class CountedDependency(Dependency):  # type: ignore[misc]
        def __init__(self, made: Any, budget: _Budget) -> None:
            super().__init__(made.trigger, made.handler, made.source, made.target)
            self._budget = budget
            self.index_mapping = _CountedMaps(made.index_mapping, budget)

        def is_triggered_by(self, pruning_fn: Any) -> Any:
            self._budget.spend("visits")
            return super().is_triggered_by(pruning_fn)

    class LimitedGraph(tp.DependencyGraph):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._budget = _Budget()

        def get_in_channels(self, node: Any) -> Any:
            self._budget.spend("lookups")
            return super().get_in_channels(node)

        def get_out_channels(self, node: Any) -> Any:
            self._budget.spend("lookups")
            return super().get_out_channels(node)

        def _build_dependency(self, module2node: Any) -> None:
            super()._build_dependency(module2node)
            for node in module2node.values():
                node.dependencies = [CountedDependency(made, self._budget) for made in node.dependencies]

    return LimitedGraph


def _searched(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Torch-Pruning's graph and its groups, within ``VISITS``, ``LOOKUPS`` and ``INDICES``."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = _limited_graph()().build_dependency(model, inputs, verbose=False)
        return graph, list(graph.get_all_groups())


# ---- the translation


class _Item(NamedTuple):
    """One node of a raw group: which side of what is cut there, and which channels."""

    module: Any
    name: str | None
    """Of the layer or the parameter; None for an operation, which has no name in the network."""
    type: Any
    """Torch-Pruning's ``OPTYPE``."""
    is_out: bool
    is_last: bool
    """Whether nothing of the network comes behind it."""
    dim: int
    channels: Sequence[int]
    roots: Sequence[int | None]
    """The channel of the group's first layer that each channel goes with."""

    @property
    def kind(self) -> str | None:
        """As in :class:`Member`; None for what cannot be cut."""
        return _kinds().get(self.type)

    @property
    def side(self) -> Side:
        if self.kind not in ("conv", "linear", "embedding"):
            return "both"
        return "out" if self.is_out else "in"

    @property
    def total(self) -> int:
        """All channels of the layer on that side."""
        assert self.kind is not None
        return side_channels(self.module, self.kind, self.side, self.dim)


def _types() -> Any:
    from torch_pruning.ops import OPTYPE

    return OPTYPE


@cache
def _kinds() -> dict[Any, str]:
    types = _types()
    norms = (types.BN, types.LN, types.GN, types.IN, types.PRELU)
    return {
        types.CONV: "conv",
        types.DEPTHWISE_CONV: "depthwise",
        types.LINEAR: "linear",
        types.EMBED: "embedding",
        types.PARAMETER: "parameter",
        **dict.fromkeys(norms, "norm"),
    }


def _items(graph: Any, raw: Any, names: dict[Any, str]) -> list[_Item]:
    return [
        _Item(
            module=item.dep.target.module,
            name=names.get(item.dep.target.module),
            type=item.dep.target.type,
            is_out=graph.is_out_channel_pruning_fn(item.dep.handler),
            is_last=not item.dep.target.outputs,
            dim=item.dep.target.pruning_dim if item.dep.target.type == _types().PARAMETER else 0,
            channels=item.idxs,
            roots=item.root_idxs,
        )
        for item in raw
    ]


def _channel_group(items: Sequence[_Item]) -> ChannelGroup:
    """The group without its operations, channels mapped to positions: channels of its first layer."""
    layers = [item for item in items if _is_layer(item)]
    faults = [_fault(item) for item in layers]
    reason = HEAD if any(map(_is_output, items)) else next(filter(None, faults), None)
    members = [_member(item) for item, fault in zip(layers, faults, strict=True) if fault is None]
    fold = max((m.channel_groups for m in members), default=1)
    name, channels = items[0].name, len(items[0].channels)
    assert name is not None, "a group begins at a layer"
    width, left = divmod(channels, fold)
    if left:
        return ChannelGroup(name, channels, tuple(members), False, "channel groups do not divide it")
    distinct = _distinct([replace(m, positions=m.positions % width) for m in members])
    group = ChannelGroup(name, width, distinct, reason is None, reason)
    return group if reason else group.checked()


def _is_output(item: _Item) -> bool:
    """Whether these channels are outputs of the network."""
    return item.type == _types().OUTPUT or (item.name is not None and item.is_out and item.is_last)


def _is_layer(item: _Item) -> bool:
    """Whether something is cut there; operations, and a slope for all channels, are only passed through."""
    if item.name is None or item.type == _types().ELEMENTWISE:
        return False
    return not (isinstance(item.module, nn.PReLU) and item.module.num_parameters == 1)


def _fault(item: _Item) -> str | None:
    """Why a layer keeps its group from being cut."""
    if item.kind is None:
        return f"{type(item.module).__name__} cannot be cut ({item.name})"
    if not item.channels or not 0 <= min(item.channels) <= max(item.channels) < item.total:
        return f"wrong channel map (it leaves the {item.total} channels of {item.name})"
    if None in item.roots:  # Torch-Pruning's map for keys that heads share
        return f"wrong channel map (channels of {item.name} go with none of the first layer)"
    return None


def _member(item: _Item) -> Member:
    assert item.name is not None and item.kind is not None
    channels, roots = (np.asarray(i, dtype=np.int64) for i in (item.channels, item.roots))
    order = np.argsort(channels, kind="stable")
    splits = _channel_groups(item.module, item.kind)
    return Member(
        item.name, item.kind, item.side, channels[order], roots[order], splits, item.dim, item.total
    )


def _distinct(members: list[Member]) -> tuple[Member, ...]:
    seen: dict[tuple[str, str], Member] = {}
    for member in members:
        seen.setdefault((member.layer, member.side), member)
    return tuple(seen.values())


def _channel_groups(module: Any, kind: str) -> int:
    if kind == "conv":
        return int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1
