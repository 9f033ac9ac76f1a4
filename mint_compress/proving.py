"""Proof of a channel map in float64: what a permutation and a removal of channels do to the outputs."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mint_compress.channels import ChannelGroup, Indices, Member, Side
from mint_compress.counting import NORMS, WEIGHTED
from mint_compress.errors import first_line
from mint_compress.outputs import tensors_in
from mint_compress.slicing import cut_

log = logging.getLogger(__name__)

PERMUTATION_TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that a right channel map may show."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A network in float64, inputs, and what it makes of them while nothing is changed."""

    model: nn.Module
    inputs: tuple[Any, ...]
    outputs: list[torch.Tensor]


def float64_twin(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy in which no layer hides a wrong map behind zeros or frozen weights, with its inputs.

    Parameters
    ----------
    model
        Any network; it is not changed.
    inputs
        Its positional inputs.

    Returns
    -------
    model, inputs
        On the CPU, in float64 and eval mode; every parameter wants gradients, so that it is traced.
    """
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
        elif not isinstance(module, WEIGHTED):
            for bare in module.parameters(recurse=False):
                if _is_constant(bare):  # a layer scale that starts at zero shuts its branch
                    bare.data.uniform_(0.5, 1.5, generator=generator)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    return twin, tuple(_to_double(x) for x in inputs)


def _to_double(x: Any) -> Any:
    return x.detach().cpu().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _is_constant(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x == x.flatten()[0]).all())


def _varied(x: Any) -> Any:
    """Noise in the place of a constant image, on which many channels would look alike."""
    if isinstance(x, torch.Tensor) and _is_constant(x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return x


def reference_run(model: nn.Module, inputs: tuple[Any, ...]) -> Reference:
    """Choose inputs that tell channels apart, the smallest that will do, and run the network on them.

    Parameters
    ----------
    model, inputs
        From :func:`float64_twin`; BatchNorm statistics are set to those of the inputs.
    """
    inputs = _small(model, tuple(_varied(x) for x in inputs))
    _level(model, inputs)
    return Reference(model, inputs, _outputs(model, inputs))


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


def map_fault(reference: Reference, group: ChannelGroup, generator: torch.Generator) -> str | None:
    """Why a group's map may not be trusted, or None when the permutation check holds.

    Parameters
    ----------
    reference
        From :func:`reference_run`; it is left as it was.
    group
        The group whose members are permuted consistently, which must not move the outputs.
    generator
        Draws the permutations.
    """
    permutations = _permutations(group, generator)
    if not permutations:
        return "map not verifiable: fewer than three of its positions are interchangeable"
    producers = [m for m in group.members if m.side == "out"]
    moved = _permuted_outputs(reference, producers, permutations[0])
    if moved is not None and _change(reference.outputs, moved) <= PERMUTATION_TOLERANCE:
        return "map not verifiable: the outputs do not depend on it"
    for permutation in permutations:
        after = _permuted_outputs(reference, group.members, permutation)
        if after is None:
            return "wrong channel map (positions have no counterpart)"
        change = _change(reference.outputs, after)
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
    reference: Reference, members: Sequence[Member], permutation: Indices
) -> list[torch.Tensor] | None:
    """Outputs with the members permuted; the tensors touched are put back."""
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for member in members:
            for tensor, dim, channels in _cut_tensors(member, reference.model):
                sources = _sources(member, permutation, channels)
                if sources is None:
                    return None
                saved.append((tensor, tensor.data))
                tensor.data = _reorder(tensor.data, dim, sources, channels)
        return _outputs(reference.model, reference.inputs)
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


def _cut_tensors(member: Member, model: nn.Module) -> Iterator[tuple[torch.Tensor, int, int]]:
    """The tensors a member's cut touches: (tensor, dimension, channels of the layer on that side)."""
    if member.kind == "parameter":
        parameter = model.get_parameter(member.layer)
        yield parameter, member.dim % parameter.ndim, parameter.shape[member.dim]
        return
    layer: Any = model.get_submodule(member.layer)
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


def removable(reference: Reference, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Leave those groups alone that cannot lose a position, however right their maps are.

    A width, or the place where channels are split, may be written into ``forward``; and there are
    layers that Torch-Pruning slices wrongly. Without a position the network must give what it
    gives when the readers ignore that position. The first and the last position shift the most.

    Parameters
    ----------
    reference
        From :func:`reference_run`; it is left as it was.
    groups
        Only those that are still prunable are tried.

    Returns
    -------
    list of ChannelGroup
        The same groups, in order, some of them with ``prunable=False`` and the reason.
    """
    if all(_trial(reference, groups, place) is None for place in (0, -1)):
        return list(groups)
    tried = []
    for group in groups:
        reasons = [_trial(reference, [group], place) for place in (0, -1)]
        reason = reasons[0] or reasons[1]
        tried.append(group.left_alone(f"its channels cannot be removed: {reason}") if reason else group)
    return tried


def _trial(reference: Reference, groups: Sequence[ChannelGroup], place: int) -> str | None:
    """What goes wrong when every prunable one of the groups loses its position ``place``."""
    twin = copy.deepcopy(reference.model)
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
            expected = _outputs(twin, reference.inputs)
            for (layer, kind, side, dim), channels in gone.items():
                cut_(twin, layer, kind, side, dim, channels)
            change = _change(expected, _outputs(twin, reference.inputs))
    except Exception as error:
        # whatever a user's forward raises on a shape it did not expect
        return first_line(error)
    return None if change <= PERMUTATION_TOLERANCE else f"the outputs then change by {change:.1e}"


def _silence(layer: Any, channels: Sequence[int]) -> None:
    """Make a layer ignore some of its input channels."""
    dim = 0 if getattr(layer, "transposed", False) else 1
    # a grouped convolution loses the same place in each of its channel groups
    places = np.unique(np.asarray(channels) % layer.weight.shape[dim])
    layer.weight.data.index_fill_(dim, torch.from_numpy(places), 0)
