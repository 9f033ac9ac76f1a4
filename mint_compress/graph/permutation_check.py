"""Proof of channel maps: permuting a group's channels everywhere in it must leave the outputs as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_compress.errors import ForeignError, foreign
from mint_compress.graph.bisection import tell_apart
from mint_compress.graph.groups import ChannelGroup, Indices, Member
from mint_compress.graph.reference import TOLERANCE, Reference, change
from mint_compress.nn.contexts import training_flags
from mint_compress.nn.io import run, tensors_in
from mint_compress.nn.layers import is_transposed, rows_beside
from mint_compress.nn.recurrent import input_weights

WRONG_MAP = "wrong channel map"
FEWEST = 3
"""Interchangeable positions that shuffles can prove."""
MOST_SINGLE = 16
"""Positions of a group that are proved by taking out each by itself (:mod:`.removal_check`)."""


def map_faults(
    reference: Reference,
    groups: Sequence[ChannelGroup],
    generator: torch.Generator,
    *,
    apart: bool = True,
) -> list[str | None]:
    """Why each group's map may not be trusted, or None where the permutation check holds.

    All groups are permuted at once, each by shuffles of its own; only where that moves the outputs
    they are taken apart, half by half, until the wrong ones are found. A wrong map of channels that the
    outputs do not depend on would pass, so that has to be seen first.

    Parameters
    ----------
    reference
        From :func:`reference_run`; it is left as it was.
    groups
        Groups that are not prunable are passed over: they keep their reason.
    generator
        Draws the permutations.
    apart
        Find out which groups are wrong; otherwise all are when any is.
    """
    reasons = [g.reason for g in groups]
    rounds: dict[int, list[Indices]] = {}
    depends = _have_gradients(reference, groups)
    for i, group in enumerate(groups):
        if reasons[i] is None:
            shuffles = _permutations(group, generator)
            reasons[i] = _unpermutable(reference, group, shuffles, seen=depends[i])
            if reasons[i] is None and shuffles:
                rounds[i] = shuffles
    for turn in range(max(map(len, rounds.values()), default=0)):
        cases = {i: (groups[i], r[turn % len(r)]) for i, r in rounds.items() if reasons[i] is None}

        def fault(some: Sequence[int], cases: dict[int, Case] = cases) -> str | None:
            moved = _permuted_change(reference, [cases[i] for i in some])
            wrong = f"{WRONG_MAP} (permutation check moved the outputs by {moved:.1e})"
            return wrong if moved > TOLERANCE else None

        trials = reference.trials if apart else 1
        for i, reason in tell_apart({i: groups[i] for i in cases}, fault, trials=trials).items():
            reasons[i] = reason
    return reasons


Case = tuple[ChannelGroup, Indices]


def _unpermutable(
    reference: Reference, group: ChannelGroup, shuffles: Sequence[Indices], *, seen: bool
) -> str | None:
    """Why permuting the group would show nothing; ``seen`` if its channels are known to have an effect."""
    if len(unpermuted(group)) > MOST_SINGLE:
        return "map not verifiable: fewer than three of its positions are interchangeable"
    if not (seen or (shuffles and _shows_in_outputs(reference, group, shuffles[0]))):
        return "map not verifiable: the outputs do not depend on it"
    if any(_sources(m, p) is None for p in shuffles for m in group.members):
        return f"{WRONG_MAP} (positions have no counterpart)"
    return None


def _have_gradients(reference: Reference, groups: Sequence[ChannelGroup]) -> list[bool]:
    """Whether the outputs have a gradient with respect to what makes each group's channels.

    One backward pass shows it for all groups. Where there is none the outputs may depend on them all
    the same: see :func:`_shows_in_outputs`.
    """
    try:
        slopes = _gradient_sizes(reference)
    except ForeignError:  # an operation without a derivative, or one that no gradient may be kept for
        return [False] * len(groups)
    return [any(slopes.get(m.layer, 0.0) > TOLERANCE for m in g.members if m.side == "out") for g in groups]


def _gradient_sizes(reference: Reference) -> dict[str, float]:
    """Name of a parameter, and of the layer that owns it -> norm of its gradient times its own norm.

    The gradient is that of the outputs, scaled and with random weights. The result is empty where the
    forward pass switches gradients off.

    Raises
    ------
    ForeignError
        The forward pass fails when gradients are kept, or the backward pass does.
    """
    named = {n: p for n, p in reference.model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(4)
    with torch.enable_grad():
        parts = [
            (t / t.detach().abs().max().clamp_min(1e-300) * torch.randn(t.shape, generator=generator)).sum()
            for t in _outputs_with_graph(reference)
            if t.requires_grad and t.numel()
        ]
        if not (parts and named):
            return {}
        total = torch.stack(parts).sum()
        with foreign("The network's backward pass"):
            gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    sizes: dict[str, float] = {}
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is not None:
            for key in (name, name.rpartition(".")[0]):
                sizes[key] = sizes.get(key, 0.0) + float(parameter.detach().norm() * gradient.norm())
    return sizes


def _outputs_with_graph(reference: Reference) -> list[torch.Tensor]:
    outputs = list(tensors_in(run(reference.model, reference.inputs)))
    if reference.in_training:
        with training_flags(reference.model):
            outputs += tensors_in(run(reference.model, reference.inputs))
    return outputs


def _shows_in_outputs(reference: Reference, group: ChannelGroup, permutation: Indices) -> bool:
    """Whether the outputs change when only what makes the group's channels is permuted.

    This asks more than the gradient, which is zero where an activation is flat.
    """
    makers = replace(group, members=tuple(m for m in group.members if m.side == "out"))
    if any(_sources(m, permutation) is None for m in makers.members):
        return True
    return _permuted_change(reference, [(makers, permutation)]) > TOLERANCE


def _permutations(group: ChannelGroup, generator: torch.Generator) -> list[Indices]:
    """Shuffles that together tell the group's map from every other map.

    Positions change places with those of their class. A wrong map passes unseen when it differs from the
    right one by a shuffle that commutes with all of these. Only the identity commutes with a cycle of all
    m positions of a class and a cycle of m - 1 of them; where there are several classes, further rounds
    leave some in place, so that no class can be taken for another. With fewer than three positions in a
    class there are no such shuffles, and they stay in their places (:func:`unpermuted`).
    """
    classes = [c for c in _classes(group) if len(c) >= FEWEST]
    if not classes:
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


def unpermuted(group: ChannelGroup) -> Indices:
    """Positions whose map no shuffle can prove: fewer than three are interchangeable."""
    small = [c for c in _classes(group) if len(c) < FEWEST]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *small]))


def _classes(group: ChannelGroup) -> list[Indices]:
    """Positions that are interchangeable: of the same part, and in the same members equally often."""
    parts = np.zeros(group.width, dtype=np.int64) if group.parts is None else group.parts
    occurrences = [np.bincount(m.positions, minlength=group.width) for m in group.members]
    _, labels = np.unique(np.stack([parts, *occurrences], 1), axis=0, return_inverse=True)
    return [np.flatnonzero(labels.ravel() == label) for label in range(int(labels.max()) + 1)]


def _sources(member: Member, permutation: Indices) -> Indices | None:
    """For every channel of the layer's side, the channel whose place it takes."""
    sources = np.arange(member.total)
    order = np.argsort(member.positions, kind="stable")
    channels, positions = member.channels[order], member.positions[order]
    counts = np.bincount(positions, minlength=len(permutation))
    starts = np.concatenate([[0], np.cumsum(counts)])
    if (counts != counts[permutation]).any():
        return None
    within = np.arange(len(positions)) - starts[positions]
    sources[channels] = channels[starts[permutation[positions]] + within]
    return sources


def _permuted_change(reference: Reference, cases: Sequence[Case]) -> float:
    """How far the outputs move when each group's members are permuted; the tensors are put back."""
    moves: dict[tuple[int, int], tuple[torch.Tensor, int, int, Indices]] = {}
    for group, permutation in cases:
        for member in group.members:
            for tensor, dim, channels in _cut_tensors(member, reference.model):
                own = np.arange(channels)
                _, _, _, sources = moves.setdefault((id(tensor), dim), (tensor, dim, channels, own))
                changed = _sources(member, permutation)
                assert changed is not None
                sources[member.channels] = changed[member.channels]
    saved = {id(tensor): (tensor, tensor.data) for tensor, *_ in moves.values()}
    try:
        for tensor, dim, channels, sources in moves.values():
            tensor.data = _reorder(tensor.data, dim, sources, channels)
        return change(reference.outputs, reference.run())
    finally:
        for tensor, data in saved.values():
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
    transposed, bias = is_transposed(layer), getattr(layer, "bias", None)
    if member.kind == "recurrent":
        for weight in input_weights(layer).values():
            yield weight, 1, member.total
    elif member.side == "in":
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
        for tensor in (bias, *rows_beside(layer).values()):
            if tensor is not None:
                yield tensor, 0, tensor.shape[0]
