"""Trial removal: without some of its positions a network must do what ignoring them does."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mint_compress.errors import ForeignError, OwnFault, first_line, is_strict, our_own
from mint_compress.graph.bisection import tell_apart
from mint_compress.graph.groups import ChannelGroup, Indices, Side
from mint_compress.graph.ignored_channels import Gone, outputs_without
from mint_compress.graph.permutation_check import unpermuted
from mint_compress.graph.reference import TOLERANCE, Reference, change
from mint_compress.graph.written_sizes import Sizes, sizes_after
from mint_compress.nn.layers import is_transposed
from mint_compress.nn.recurrent import input_weights
from mint_compress.surgery.layer_sizes import set_sizes_
from mint_compress.surgery.pruning_plan import PruningPlan
from mint_compress.surgery.slicing import CannotCut, adapt_, cut_

log = logging.getLogger(__name__)

UNREMOVABLE = "its channels cannot be removed: {}"
OUR_FAULT = "mint-compress fails at it"


class _NoStatistics(TorchFunctionMode):
    """Hold values down one by one: statistics over channels hide whether the right channels are there.

    With nothing in the place of the statistics the values of a deep network may overflow; asinh grows
    like a logarithm and flattens nothing out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)  # the network's call
        if func not in (F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.batch_norm):
            return result
        with our_own():
            return self._held_down(func, args, kwargs, result)

    @staticmethod
    def _held_down(func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        if func is F.batch_norm and not given.get("training"):
            return result  # its statistics are stored, a number for each channel
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        if func not in (F.layer_norm, F.rms_norm):
            shape = [-1] + [1] * (x.ndim - 2)
            weight, bias = (None if t is None else t.reshape(shape) for t in (weight, bias))
        x = x.asinh() if weight is None else x.asinh() * weight
        return x if bias is None else x + bias


def removable(
    reference: Reference, groups: Sequence[ChannelGroup], *, apart: bool = True
) -> list[ChannelGroup]:
    """Leave those groups alone that cannot lose positions, however right their maps are.

    A width, or the place where channels are split, may be written into ``forward``; and there are
    layers that Torch-Pruning slices wrongly. Without some positions the network must give what it
    gives when the readers ignore them. The first and the last positions shift the most. All groups
    lose some at once, neighbours a different number, lest one hide what another breaks; only where
    that fails they are taken apart, half by half. Positions that no permutation can prove are taken out
    one by one besides.

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
    turns = {i: [_lost(g, i, 0), _lost(g, i, 1), *_singly(g)] for i, g in enumerate(groups) if g.prunable}
    for turn in range(max(map(len, turns.values()), default=0)):
        trials = {i: (result[i], t[turn]) for i, t in turns.items() if turn < len(t) and result[i].prunable}
        for i, reason in _failed(reference, trials, most=reference.trials if apart else 1).items():
            result[i] = groups[i].left_alone(reason)
    return result


def plan_faults(reference: Reference, groups: Sequence[ChannelGroup], plan: PruningPlan) -> dict[str, str]:
    """Why groups cannot lose what a plan takes from them, by name; empty when the plan is right."""
    lost = {cut.group: np.array(cut.removed) for cut in plan.groups if cut.removed}
    trials = {i: (g, lost[g.name]) for i, g in enumerate(groups) if g.name in lost}
    failed = _failed(reference, trials, most=reference.trials)
    return {groups[i].name: reason for i, reason in failed.items()}


Trial = tuple[ChannelGroup, Indices]


def _lost(group: ChannelGroup, index: int, turn: int) -> Indices:
    """Positions for a trial: 1 to 4 from either end; groups less than 16 apart differ in one turn.

    Of a group in parts so many shares, from the first of one part and the last of the next: channels of
    several parts need not go in pairs.
    """
    count = 1 + index // 4**turn % 4
    lost = []
    for part, (positions, share) in enumerate(group.shares):
        most = len(positions) // share
        gone = share * min(count, max(1, most - 2 if group.parts is None else most - 1))
        lost.append(positions[:gone] if (part + turn) % 2 == 0 else positions[-gone:])
    return np.sort(np.concatenate(lost))


def _singly(group: ChannelGroup) -> list[Indices]:
    """For every position that no permutation can prove, a trial without it: the only one of its part."""
    found = []
    for position in unpermuted(group).tolist():
        lost = [np.roll(own, -int(np.searchsorted(own, position)))[:n] for own, n in group.shares]
        found.append(np.sort(np.concatenate(lost)))
    return found


def _failed(reference: Reference, trials: Mapping[int, Trial], *, most: int) -> dict[int, str]:
    """Number -> reason, of the groups that cannot lose their positions; found in so many runs at most."""

    def fault(some: Sequence[int]) -> str | None:
        return _trial(reference, [trials[i] for i in some])

    failed = tell_apart({i: group for i, (group, _) in trials.items()}, fault, trials=most)
    for i, reason in failed.items():
        if OUR_FAULT in reason and most > 1:  # with one, nothing is told of single groups
            log.warning("%s is left alone: %s", trials[i][0].name, reason)
    return {i: UNREMOVABLE.format(reason) for i, reason in failed.items()}


def _trial(reference: Reference, trials: Sequence[Trial]) -> str | None:
    """What goes wrong when the groups lose these positions; the network is put back."""
    try:
        sizes = sizes_after([(group.written, _gone([(group, lost)])) for group, lost in trials])
        moved = _change_without(reference, _gone(trials), sizes)
    except ForeignError as error:  # the network's forward, on a shape that it did not expect
        return f"the network then fails ({first_line(error)})"
    except CannotCut as error:
        return str(error)
    except (Exception, OwnFault) as error:
        # ours, or of a library that we call: it costs the user these groups, not the whole run
        if is_strict():
            raise
        log.debug("where that was", exc_info=True)
        return f"{OUR_FAULT} ({first_line(error)}); please report it"
    return None if moved <= TOLERANCE else f"the outputs then change (by {moved:.1e})"


def _gone(trials: Sequence[Trial]) -> Gone:
    gone: dict[tuple[str, str, Side, int], list[int]] = {}
    for group, lost in trials:
        for m in group.members:
            own = m.channels[np.isin(m.positions, lost)].tolist()
            if own:
                gone.setdefault((m.layer, m.kind, m.side, m.dim), []).extend(own)
    return gone


def _change_without(reference: Reference, gone: Gone, sizes: Sizes) -> float:
    """How far the outputs without these channels are from those in which readers ignore them.

    Whatever takes a mean or a norm over the channels is a reader as well. To let it ignore some takes a pass
    that follows the channels, so it is asked only where ignoring them in the layers is not enough.
    """
    model = reference.model
    with _NoStatistics():
        with _silenced(model, gone):
            expected = reference.run()
        with _restored(model):
            for (layer, kind, side, dim), channels in gone.items():
                cut_(model, layer, kind, side, dim, channels)
            adapt_(model)
            set_sizes_(model, sizes)
            left = reference.run()
        moved = change(expected, left)
        if moved <= TOLERANCE or len(expected) != len(left):
            return moved
        with _silenced(model, gone):
            return change(outputs_without(reference, gone), left)


@contextmanager
def _silenced(model: nn.Module, gone: Gone) -> Iterator[None]:
    """Let layers ignore some of their input channels."""
    saved = []
    try:
        for (name, _, side, _), channels in gone.items():
            if side == "in":
                layer: Any = model.get_submodule(name)
                dim = 0 if is_transposed(layer) else 1
                for weight in input_weights(layer).values() or [layer.weight]:
                    # a grouped convolution loses the same place in each of its channel groups
                    places = torch.from_numpy(np.unique(np.asarray(channels) % weight.shape[dim]))
                    saved.append((weight.data, dim, places, weight.data.index_select(dim, places)))
                    weight.data.index_fill_(dim, places, 0)
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
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
