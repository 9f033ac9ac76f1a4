"""Trial removal: without some of its positions a network must do what ignoring them does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mint_compress.errors import first_line
from mint_compress.graph.bisection import tell_apart
from mint_compress.graph.groups import ChannelGroup, Indices, Side
from mint_compress.graph.reference import TOLERANCE, Reference, change
from mint_compress.nn.contexts import hooked
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.surgery.slicing import adapt_, cut_

UNREMOVABLE = "its channels cannot be removed: {}"


class _NoStatistics(TorchFunctionMode):
    """Hold values down one by one: statistics over channels hide whether the right channels are there.

    With nothing in the place of the statistics the values of a deep network may overflow; asinh grows
    like a logarithm and flattens nothing out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in (F.layer_norm, F.group_norm, F.instance_norm, F.batch_norm):
            return result
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        if func is F.batch_norm and not given.get("training"):
            return result  # its statistics are stored, a number for each channel
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        if func is not F.layer_norm:
            shape = [-1] + [1] * (x.ndim - 2)
            weight, bias = (None if t is None else t.reshape(shape) for t in (weight, bias))
        x = x.asinh() if weight is None else x.asinh() * weight
        return x if bias is None else x + bias


@contextmanager
def _no_response(model: nn.Module) -> Iterator[None]:
    """The same for timm's GlobalResponseNorm, which takes a mean over channels by itself."""

    def held_down(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        weight, bias = (p.view(module.wb_shape) for p in (module.weight, module.bias))
        result: torch.Tensor = x + bias + weight * x.asinh()
        return result

    found = [m for m in model.modules() if type(m).__name__ == "GlobalResponseNorm"]
    with hooked([m.register_forward_hook(held_down) for m in found]):
        yield


def removable(
    reference: Reference, groups: Sequence[ChannelGroup], *, apart: bool = True
) -> list[ChannelGroup]:
    """Leave those groups alone that cannot lose positions, however right their maps are.

    A width, or the place where channels are split, may be written into ``forward``; and there are
    layers that Torch-Pruning slices wrongly. Without some positions the network must give what it
    gives when the readers ignore them. The first and the last positions shift the most. All groups
    lose some at once, neighbours a different number, lest one hide what another breaks; only where
    that fails they are taken apart, half by half.

    Parameters
    ----------
    reference
        From :func:`reference_run`; it is left as it was.
    groups
        Only those that are still prunable are tried.
    apart
        Find out which groups cannot; otherwise none can when any cannot.

    Returns
    -------
    list of ChannelGroup
        The same groups, in order, some of them with ``prunable=False`` and the reason.
    """
    result = list(groups)
    for turn in (0, 1):
        trials = {i: (g, _lost(g, i, turn)) for i, g in enumerate(result) if g.prunable}

        def fault(some: Sequence[int], trials: dict[int, Trial] = trials) -> str | None:
            return _trial(reference, [trials[i] for i in some])

        for i, reason in tell_apart(
            {i: g for i, (g, _) in trials.items()}, fault, trials=reference.trials if apart else 1
        ).items():
            result[i] = groups[i].left_alone(UNREMOVABLE.format(reason))
    return result


def plan_faults(reference: Reference, groups: Sequence[ChannelGroup], plan: PruningPlan) -> dict[str, str]:
    """Why groups cannot lose what a plan takes from them, by name; empty when the plan is right."""
    lost = {cut.group: np.array(cut.removed) for cut in plan.groups if cut.removed}
    trials = {i: (g, lost[g.name]) for i, g in enumerate(groups) if g.name in lost}

    def fault(some: Sequence[int]) -> str | None:
        return _trial(reference, [trials[i] for i in some])

    failed = tell_apart({i: g for i, (g, _) in trials.items()}, fault, trials=reference.trials)
    return {groups[i].name: UNREMOVABLE.format(reason) for i, reason in failed.items()}


Trial = tuple[ChannelGroup, Indices]


def _lost(group: ChannelGroup, index: int, turn: int) -> Indices:
    """Positions for a trial: 1 to 4 from either end; groups less than 16 apart differ in one turn."""
    count = min(1 + index // 4**turn % 4, max(1, group.width - 2))
    return np.arange(count) if turn == 0 else np.arange(group.width - count, group.width)


def _trial(reference: Reference, trials: Sequence[Trial]) -> str | None:
    """What goes wrong when the groups lose these positions; the network is put back."""
    gone: dict[tuple[str, str, Side, int], list[int]] = {}
    for group, lost in trials:
        for m in group.members:
            own = m.channels[np.isin(m.positions, lost)].tolist()
            if own:
                gone.setdefault((m.layer, m.kind, m.side, m.dim), []).extend(own)
    model = reference.model
    try:
        with _NoStatistics(), _no_response(model):
            with _silenced(model, gone):
                expected = reference.run()
            with _restored(model):
                for (layer, kind, side, dim), channels in gone.items():
                    cut_(model, layer, kind, side, dim, channels)
                adapt_(model)
                moved = change(expected, reference.run())
    except Exception as error:
        # whatever a user's forward raises on a shape it did not expect
        return f"the network then fails ({first_line(error)})"
    return None if moved <= TOLERANCE else f"the outputs then change (by {moved:.1e})"


@contextmanager
def _silenced(model: nn.Module, gone: Mapping[tuple[str, str, Side, int], Sequence[int]]) -> Iterator[None]:
    """Let layers ignore some of their input channels."""
    saved = []
    try:
        for (name, _, side, _), channels in gone.items():
            if side == "in":
                layer: Any = model.get_submodule(name)
                dim = 0 if getattr(layer, "transposed", False) else 1
                # a grouped convolution loses the same place in each of its channel groups
                places = torch.from_numpy(np.unique(np.asarray(channels) % layer.weight.shape[dim]))
                saved.append((layer.weight.data, dim, places, layer.weight.data.index_select(dim, places)))
                layer.weight.data.index_fill_(dim, places, 0)
        yield
    finally:
        for data, dim, places, values in saved:
            data.index_copy_(dim, places, values)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put the layers back as they were: slicing makes new tensors and sets new sizes."""
    saved = [(m, type(m), dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, kind, attributes, parameters, buffers in saved:
            module.__class__ = kind  # a layer may have begun to select among its inputs
            module.__dict__.update(attributes)
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
