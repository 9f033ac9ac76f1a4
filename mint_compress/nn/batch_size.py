"""How many samples go through a network at a time: as many as leave what it makes on the way small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mint_compress.allocator import OWN_PAGES
from mint_compress.errors import our_own
from mint_compress.nn.contexts import evaluating, hooked
from mint_compress.nn.io import Inputs, count, run, tensors_in

LARGEST = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Bytes of one layer's output for all samples. Above that a CPU's allocator asks the system for fresh memory
at every layer, and a network with large images spends more time on that than on arithmetic."""
PASSING = {"cpu": OWN_PAGES - 2**20, "cuda": 2**30}
"""The same where samples only pass through, so that few at a time cost nothing."""
ALIVE = 2**30
"""Bytes of activations that passes which have paused may keep alive."""
MAPS = 2 * 3
"""How many of the largest maps a sample keeps alive, roughly: three in a network and in its counterpart."""
LEAST_ALIVE = 8


def samples_at_once(model: nn.Module, sample: Inputs, most: int, within: Mapping[str, int] = LARGEST) -> int:
    """``most`` samples, or as many as keep each layer's output ``within`` so many bytes; 1 at least.

    ``sample`` is where the network is.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    return max(1, min(most, within.get(device, within["cuda"]) // largest_output(model, sample)))


def kept_alive(model: nn.Module, sample: Inputs) -> int:
    """How many samples may be anywhere in two networks that go through them side by side."""
    return _within(largest_output(model, sample))


def kept_alive_at(model: nn.Module, sample: Inputs, calls: Sequence[str]) -> list[int]:
    """How many samples may have come so far, at each of the calls of a network's layers.

    What has been is let go: deep in a network, where maps are small, many more samples can wait than at its
    beginning.

    Parameters
    ----------
    model, sample
        As for :func:`samples_at_once`.
    calls
        Names of layers in the order of their calls, a layer as often as it is called.
    """
    named = {name: model.get_submodule(name) for name in calls}
    events = _events(model, sample, named)
    at = [i for i, (name, _) in enumerate(events) if name is not None]
    if [events[i][0] for i in at] != list(calls):  # it does not call them in the same order each time
        return [kept_alive(model, sample)] * len(calls)
    return [_within(max(size for _, size in events[i:])) for i in at]


def largest_output(model: nn.Module, sample: Inputs) -> int:
    """Bytes of the largest tensor that any module of the network gives for one sample of the batch."""
    return max((size for _, size in _events(model, sample, {})), default=1)


def activations_alive(largest: int, samples: int) -> int:
    """Bytes that passes of so many samples keep alive at most; ``largest`` is the largest output of one."""
    return min(samples, _within(largest)) * MAPS * largest


def _within(largest: int) -> int:
    return max(LEAST_ALIVE, ALIVE // (MAPS * largest))


def _events(model: nn.Module, sample: Inputs, named: Mapping[str, nn.Module]) -> list[tuple[str | None, int]]:
    """Calls of the named modules with the bytes of their inputs, and of all modules with those they give.

    In the order in which they happen; bytes are those of the largest tensor, for one sample.
    """
    events: list[tuple[str | None, int]] = []

    def size(values: Any) -> int:
        largest = max((x.numel() * x.element_size() for x in tensors_in(values)), default=1)
        return max(1, -(-largest // count(sample)))

    def called(name: str) -> Callable[..., None]:
        @our_own()
        def see(module: nn.Module, args: Any, kwargs: Any) -> None:
            events.append((name, size((args, kwargs))))

        return see

    @our_own()
    def gave(module: nn.Module, inputs: Any, output: Any) -> None:
        events.append((None, size(output)))

    hooks = [m.register_forward_pre_hook(called(n), with_kwargs=True) for n, m in named.items()]
    hooks += [module.register_forward_hook(gave) for module in model.modules()]
    with hooked(hooks), evaluating(model), torch.no_grad():
        run(model, sample)
    return events
