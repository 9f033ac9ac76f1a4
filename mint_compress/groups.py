"""The dependency graph as channel groups: which positions must go together, and which layers they touch."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mint_compress.counting import CONVOLUTIONS, WEIGHTED, layer_macs
from mint_compress.errors import MintError

log = logging.getLogger(__name__)

Side = Literal["out", "in", "both"]
Indices = NDArray[np.int64]

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)
PERMUTATION_TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that a right channel map may show."""


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer (or a bare parameter) whose channels belong to a group.

    Attributes
    ----------
    layer
        Qualified name of the module, or of the parameter when ``kind`` is ``"parameter"``.
    kind
        ``conv``, ``depthwise``, ``linear``, ``norm``, ``embedding`` or ``parameter``.
    side
        ``out``: the layer's output channels; ``in``: its input channels; ``both``: one channel is
        both (normalisation, depthwise convolution).
    channels, positions
        ``(m,)`` each: the layer's channel ``channels[i]`` is at the group's ``positions[i]``.
    channel_groups
        Channel groups of the layer on that side (grouped convolution, GroupNorm), else 1.
    dim
        The dimension that is cut, for a bare parameter.
    total
        All channels of the layer on that side.
    """

    layer: str
    kind: str
    side: Side
    channels: Indices
    positions: Indices
    channel_groups: int = 1
    dim: int = 0
    total: int = 0


@dataclass(frozen=True)
class LayerShape:
    """What one layer counts, as a function of its channels.

    Attributes
    ----------
    inputs, outputs
        Channels on each side; a layer whose channels are both (a norm) has only outputs.
    weights
        Elements of the weight, which scale with both sides.
    per_output
        Further parameters per output channel (the bias).
    fixed
        Parameters that do not scale.
    macs
        Multiply-accumulate operations of one sample; they scale as the weights do.
    """

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    per_output: int = 0
    fixed: int = 0
    macs: int = 0

    @property
    def parameters(self) -> int:
        """All parameters of the layer."""
        return self.weights + self.per_output * self.outputs + self.fixed

    def after(self, inputs_gone: int, outputs_gone: int) -> tuple[int, int]:
        """Parameters and MACs once so many channels are gone on each side."""
        inputs, outputs = self.inputs - inputs_gone, self.outputs - outputs_gone
        scale, whole = outputs * (inputs or 1), self.outputs * (self.inputs or 1) or 1
        weights = self.weights * scale // whole
        return weights + self.per_output * outputs + self.fixed, self.macs * scale // whole


@dataclass(frozen=True)
class Network:
    """Every layer that has parameters, by qualified name."""

    layers: Mapping[str, LayerShape] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Parameters of the whole network."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def macs(self) -> int:
        """MACs of one sample."""
        return sum(layer.macs for layer in self.layers.values())


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only go together, along the dependency graph.

    Attributes
    ----------
    name
        Qualified name of the first producer.
    width
        Number of positions; a position is what is kept or removed at once.
    members
        Every layer side the positions touch.
    prunable, reason
        Whether positions may go, and if not, why not.
    network
        What every layer of the network counts; the same for all its groups.
    """

    name: str
    width: int
    members: tuple[Member, ...] = field(repr=False)
    prunable: bool = True
    reason: str | None = None
    network: Network = field(repr=False, default_factory=lambda: Network({}))

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make these channels."""
        return tuple(
            m.layer for m in self.members if m.side == "out" and m.kind in ("conv", "linear", "embedding")
        )

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read these channels, with the map from their inputs to the positions."""
        return tuple(m for m in self.members if m.side == "in")

    def left_alone(self, reason: str) -> ChannelGroup:
        """The same group, not prunable for ``reason``."""
        return replace(self, prunable=False, reason=reason)


def find_groups(
    model: nn.Module, example_inputs: tuple[Any, ...] | torch.Tensor, *, ignore: Iterable[str] = ()
) -> list[ChannelGroup]:
    """Find all channel groups of a network and prove each map before it may be used.

    The groups come from Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023). Its
    index maps can be wrong without a sign, so every group is tested: its channels are permuted
    consistently in all layers, in float64; a right map leaves the outputs as they were. A group
    that fails is returned with ``prunable=False`` and the reason.

    Parameters
    ----------
    model
        Any network; it is not changed.
    example_inputs
        Inputs for one forward pass, batch dimension first.
    ignore
        fnmatch patterns of qualified layer names whose output channels stay, children included.

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
    reference = _double(model)
    inputs64 = tuple(_to_double(x) for x in inputs)
    graph, raw_groups = _trace(reference, inputs64)
    names: dict[Any, str] = {m: n for n, m in reference.named_modules()}
    names.update((p, n) for n, p in reference.named_parameters())
    groups = [_channel_group(graph, raw, names) for raw in raw_groups]
    modules = dict(reference.named_modules())
    check_inputs = _small(reference, tuple(_varied(x) for x in inputs64))
    _level(reference, check_inputs)
    outputs = _outputs(reference, check_inputs)
    generator = torch.Generator().manual_seed(0)
    tied = _tied(reference)
    found = []
    for group in groups:
        reason = group.reason or _ignored(group, ignored) or _shared(group, tied)
        reason = reason or _fault(reference, group, modules, check_inputs, outputs, generator)
        found.append(group.left_alone(reason) if reason else group)
    found = _removable(reference, found, check_inputs)
    traced = {m.layer for g in found for m in g.members if m.side != "in"} | {g.name for g in found}
    found += _untraced(reference, traced)
    network = _network(model, inputs, found)
    return [replace(group, network=network) for group in found]


def _network(model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]) -> Network:
    """Count every module that owns parameters; one that several modules share counts at the first."""
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
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
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        inputs = 0 if _is_depthwise(module) else _channels(module, kind, "in", 0)
        outputs = _channels(module, kind, "out", 0)
        return LayerShape(inputs, outputs, weights, int(bias > 0), fixed, macs)
    if isinstance(module, (*NORMS, nn.Embedding)):
        outputs = _channels(module, "norm" if isinstance(module, NORMS) else "embedding", "both", 0)
        if weights % outputs == 0 and bias in (0, outputs):
            return LayerShape(0, outputs, weights, int(bias > 0), fixed)
    return LayerShape(fixed=fixed + weights + bias)


def consumer_units(groups: Sequence[ChannelGroup]) -> dict[str, torch.Tensor]:
    """For every layer that reads prunable channels, the unit each input channel belongs to.

    Units number the positions of all prunable groups in turn (:func:`unit_offsets`); a channel
    that stays has -1.

    Returns
    -------
    dict
        Layer name -> ``(C_in,)`` int64.
    """
    offsets = unit_offsets(groups)
    units: dict[str, torch.Tensor] = {}
    for group in groups:
        for member in group.consumers if group.prunable else ():
            own = units.setdefault(member.layer, torch.full((member.total,), -1))
            own[torch.from_numpy(member.channels)] = torch.from_numpy(member.positions) + offsets[group.name]
    return units


def unit_offsets(groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Group name -> unit number of its first position; prunable groups only."""
    offsets, total = {}, 0
    for group in groups:
        if group.prunable:
            offsets[group.name] = total
            total += group.width
    return offsets


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


def _tied(model: nn.Module) -> dict[str, str]:
    """Module -> another one that holds the same parameter: slicing would make two of it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {
        name: other
        for o in owners.values()
        for name, other in zip(o, o[1:] + o[:1], strict=True)
        if name != other
    }


def _shared(group: ChannelGroup, tied: Mapping[str, str]) -> str | None:
    for member in group.members:
        if member.layer in tied:
            return f"{member.layer} shares a parameter with {tied[member.layer]}"
    return None


def _double(model: nn.Module) -> nn.Module:
    """A float64 copy in eval mode in which no layer hides a wrong map behind zeros or frozen weights."""
    twin = copy.deepcopy(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in twin.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, NORMS):
            for tensor, low, high in ((weight, 0.6, 1.4), (bias, -0.2, 0.2)):
                if isinstance(tensor, torch.Tensor):
                    tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, WEIGHTED) and not bool(module.weight.any()):
            module.weight.data.normal_(0, 0.02, generator=generator)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    return twin


def _to_double(x: Any) -> Any:
    return x.detach().cpu().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _varied(x: Any) -> Any:
    """Noise in the place of a constant image, on which many channels would look alike."""
    if isinstance(x, torch.Tensor) and x.is_floating_point() and bool((x == x.flatten()[0]).all()):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return x


def _level(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set BatchNorm to what these inputs show: with untrained statistics signals may fade to nothing."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        _outputs(model, inputs)
    except ValueError:
        log.debug("one value per channel: the statistics are left as they were")
    for norm in norms:
        norm.eval()


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
            f"The network could not be traced: {_first_line(error)}. "
            "Check --input-shape, or run its forward on such an input."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


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
    if kind in ("conv", "depthwise"):
        return int(module.in_channels if side == "in" else module.out_channels)
    if kind == "linear":
        return int(module.in_features if side == "in" else module.out_features)
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


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels


# --- the permutation check -------------------------------------------------------------------------


def _small(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The smallest images the network still accepts: the maps do not depend on the image size."""
    image = inputs[0]
    if len(inputs) == 1 and isinstance(image, torch.Tensor) and image.ndim == 4 and min(image.shape[2:]) > 64:
        generator = torch.Generator().manual_seed(2)
        for side in (64, 96, 128):
            if side >= min(image.shape[2:]):
                break
            small = torch.randn(1, image.shape[1], side, side, generator=generator, dtype=torch.float64)
            try:
                _outputs(model, (small,))
            except (RuntimeError, ValueError, AssertionError):
                continue
            return (small,)
    return inputs


def tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested output, in a fixed order."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_in(value)


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t.clone() for t in tensors_in(model(*inputs))]


def _change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Largest relative difference; infinite where shapes or finiteness differ."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape or not bool(b.isfinite().all()):
            return float("inf")
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)))
    return worst


def _fault(
    model: nn.Module,
    group: ChannelGroup,
    modules: dict[str, nn.Module],
    inputs: tuple[Any, ...],
    outputs: list[torch.Tensor],
    generator: torch.Generator,
) -> str | None:
    """Why the group's map may not be trusted, or None when the permutation check holds."""
    permutations = _permutations(group, generator)
    if not permutations:
        return "map not verifiable: fewer than three of its positions are interchangeable"
    producers = [m for m in group.members if m.side == "out"]
    moved = _permuted_outputs(model, producers, permutations[0], modules, inputs)
    if moved is not None and _change(outputs, moved) <= PERMUTATION_TOLERANCE:
        return "map not verifiable: the outputs do not depend on it"
    for permutation in permutations:
        after = _permuted_outputs(model, group.members, permutation, modules, inputs)
        if after is None:
            return "wrong channel map (positions have no counterpart)"
        change = _change(outputs, after)
        if change > PERMUTATION_TOLERANCE:
            return f"wrong channel map (permutation check moved the outputs by {change:.1e})"
    return None


def _permutations(group: ChannelGroup, generator: torch.Generator) -> list[Indices]:
    """Shuffles that together tell the group's map from every other map.

    Positions change places with those that occur in the same members equally often. A wrong map
    passes unseen when it differs from the right one by a shuffle that commutes with all of these.
    Only the identity commutes with a cycle of all m positions of a class and a cycle of m - 1 of
    them; where there are several classes, further rounds leave some in place, so that no class can
    be taken for another. With fewer than three positions in a class there are no such shuffles.
    """
    counts = np.stack([np.bincount(m.positions, minlength=group.width) for m in group.members], 1)
    _, labels = np.unique(counts, axis=0, return_inverse=True)
    classes = [np.flatnonzero(labels.ravel() == label) for label in range(int(labels.max()) + 1)]
    if min(len(c) for c in classes) < 3:
        return []
    shuffles = [[len(c) for c in classes], [len(c) - 1 for c in classes]]
    for bit in range((len(classes) - 1).bit_length()):
        shuffles.append([len(c) * (label >> bit & 1) for label, c in enumerate(classes)])
    permutations = []
    for lengths in shuffles:
        permutation = np.arange(group.width)
        for among, length in zip(classes, lengths, strict=True):
            cycle = among[torch.randperm(len(among), generator=generator).numpy()][:length]
            permutation[cycle] = np.roll(cycle, 1)
        permutations.append(permutation)
    return permutations


def _sources(member: Member, permutation: Indices, channels: int) -> Indices | None:
    """For every channel of the layer, the channel whose place it takes."""
    sources = np.arange(channels)
    where: dict[int, list[int]] = {}
    for channel, position in zip(member.channels.tolist(), member.positions.tolist(), strict=True):
        where.setdefault(position, []).append(channel)
    for position, own in where.items():
        other = where.get(int(permutation[position]))
        if other is None or len(other) != len(own):
            return None
        sources[own] = other
    return sources


def _permuted_outputs(
    model: nn.Module,
    members: Sequence[Member],
    permutation: Indices,
    modules: dict[str, nn.Module],
    inputs: tuple[Any, ...],
) -> list[torch.Tensor] | None:
    """Outputs with the members permuted; the tensors touched are put back."""
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for member in members:
            for tensor, dim, channels in _cut_tensors(member, modules, model):
                sources = _sources(member, permutation, channels)
                if sources is None:
                    return None
                saved.append((tensor, tensor.data))
                tensor.data = _reorder(tensor.data, dim, sources, channels)
        return _outputs(model, inputs)
    finally:
        for tensor, data in reversed(saved):
            tensor.data = data


def _reorder(data: torch.Tensor, dim: int, sources: Indices, channels: int) -> torch.Tensor:
    size = data.shape[dim]
    if size == channels:
        return data.index_select(dim, torch.from_numpy(sources))
    # input side of a grouped convolution: `size` channels per group, rows belong to groups in turn
    rows = data.shape[0] // (channels // size)
    blocks = [
        data[g * rows : (g + 1) * rows].index_select(
            dim, torch.from_numpy(sources[g * size : (g + 1) * size] - g * size)
        )
        for g in range(channels // size)
    ]
    return torch.cat(blocks)


def _cut_tensors(
    member: Member, modules: dict[str, nn.Module], model: nn.Module
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """The tensors a member's cut touches: (tensor, dimension, channels of the layer on that side)."""
    if member.kind == "parameter":
        parameter = model.get_parameter(member.layer)
        yield parameter, member.dim % parameter.ndim, parameter.shape[member.dim]
        return
    layer: Any = modules[member.layer]
    transposed = bool(getattr(layer, "transposed", False))
    bias = getattr(layer, "bias", None)
    if member.side == "in":
        yield layer.weight, 0 if transposed else 1, member.total
    elif member.kind == "norm":
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                yield tensor, tensor.ndim - 1, tensor.shape[-1]
    elif member.kind == "embedding":
        yield layer.weight, 1, member.total
    else:
        yield layer.weight, 1 if transposed and member.kind == "conv" else 0, member.total
        if bias is not None:
            yield bias, 0, bias.shape[0]


# --- removal -----------------------------------------------------------------------------------------


def cut_(model: nn.Module, layer: str, kind: str, side: str, dim: int, channels: Sequence[int]) -> None:
    """Take channels out of one side of one layer, or of a bare parameter, in place.

    Torch-Pruning's slicing functions do the work. Parameters become new objects.
    """
    if kind == "parameter":
        parameter = model.get_parameter(layer)
        parent, _, leaf = layer.rpartition(".")
        slicer = slicer_of(parameter, dim)
        setattr(model.get_submodule(parent), leaf, slicer.prune_out_channels(parameter, list(channels)))
        return
    module = model.get_submodule(layer)
    slicer = slicer_of(module)
    (slicer.prune_in_channels if side == "in" else slicer.prune_out_channels)(module, list(channels))


def slicer_of(module: Any, dim: int = -1) -> Any:
    """Torch-Pruning's slicing functions for a layer, or for dimension ``dim`` of a bare parameter."""
    import torch_pruning as tp

    slicer = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
    slicer.pruning_dim = dim
    return slicer


class _NoStatistics(TorchFunctionMode):
    """Normalise nothing: statistics over channels hide whether the right channels are there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in (F.layer_norm, F.group_norm, F.instance_norm):
            return result
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        if func is not F.layer_norm:
            shape = [-1] + [1] * (x.ndim - 2)
            weight, bias = (None if t is None else t.reshape(shape) for t in (weight, bias))
        x = x if weight is None else x * weight
        return x if bias is None else x + bias


def _removable(
    model: nn.Module, groups: Sequence[ChannelGroup], inputs: tuple[Any, ...]
) -> list[ChannelGroup]:
    """Leave those groups alone that cannot lose a position, however right their maps are.

    A width, or the place where channels are split, may be written into ``forward``; and there are
    layers that Torch-Pruning slices wrongly. Without a position the network must give what it
    gives when the readers ignore that position. The first and the last position shift the most.
    """
    if all(_trial(model, groups, place, inputs) is None for place in (0, -1)):
        return list(groups)
    tried = []
    for group in groups:
        reasons = [_trial(model, [group], place, inputs) for place in (0, -1)]
        reason = reasons[0] or reasons[1]
        tried.append(group.left_alone(f"its channels cannot be removed: {reason}") if reason else group)
    return tried


def _trial(
    model: nn.Module, groups: Sequence[ChannelGroup], place: int, inputs: tuple[Any, ...]
) -> str | None:
    """What goes wrong when every prunable one of the groups loses its position ``place``."""
    twin = copy.deepcopy(model)
    gone: dict[tuple[str, str, Side, int], list[int]] = {}
    for group in groups:
        for m in group.members if group.prunable else ():
            channels = m.channels[m.positions == place % group.width]
            if len(channels):
                gone.setdefault((m.layer, m.kind, m.side, m.dim), []).extend(channels.tolist())
    try:
        with _NoStatistics():
            for (layer, _, side, _), channels in gone.items():
                if side == "in":
                    _silence(twin.get_submodule(layer), channels)
            expected = _outputs(twin, inputs)
            for (layer, kind, side, dim), channels in gone.items():
                cut_(twin, layer, kind, side, dim, channels)
            change = _change(expected, _outputs(twin, inputs))
    except Exception as error:
        # whatever a user's forward raises on a shape it did not expect
        return _first_line(error)
    return None if change <= PERMUTATION_TOLERANCE else f"the outputs then change by {change:.1e}"


def _silence(layer: Any, channels: Sequence[int]) -> None:
    """Make a layer ignore some of its input channels."""
    dim = 0 if getattr(layer, "transposed", False) else 1
    # a grouped convolution loses the same place in each of its channel groups
    places = np.unique(np.asarray(channels) % layer.weight.shape[dim])
    layer.weight.data.index_fill_(dim, torch.from_numpy(places), 0)
