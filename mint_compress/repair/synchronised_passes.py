"""Synchronised forward passes: one a batch, all of which pause at the same layer until they are advanced.

Repairing a network layer after layer needs, at every layer, what the layers before it give *after*
their repair. Starting every forward pass anew for each layer costs time quadratic in depth. Here
each batch has a thread of its own that pauses at the layer, keeps its activations, and goes on once
the layer has been repaired. One thread runs at a time, in a fixed order, so results do not depend
on scheduling, and any ``forward`` written in Python will do: nothing is traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mint_compress.errors import our_own
from mint_compress.nn.contexts import first_given, hooked
from mint_compress.nn.io import forward
from mint_compress.repair.tensor_location import TensorLocation


class _Cancelled(BaseException):
    """Ends a thread whose pass is no longer wanted."""


class Pass:
    """One forward pass that pauses at layers.

    Attributes
    ----------
    group
        The same object for all passes that are synchronised with each other.
    paused_at
        Name of the layer it has paused at, None once the pass has ended.
    inputs, output
        What that layer was given, and gave (``output`` only when pausing after the layer).
    pauses
        How often it has paused so far.
    recorded
        Name -> the latest tensor seen at the locations that :func:`synchronised_passes` was asked to record.
    result
        What the network gave, once the pass has ended.
    """

    def __init__(self, model: nn.Module, batch: Any, group: object) -> None:
        self.group = group
        self.paused_at: str | None = None
        self.inputs: Tensor | None = None
        self.output: Tensor | None = None
        self.pauses = 0
        self.recorded: dict[str, Tensor] = {}
        self.result: Any = None
        self._error: BaseException | None = None
        self._cancelled = self._ended = False
        # no semaphores: one that Ctrl+C interrupts while it wakes a thread may wake none ever after
        self._may_run, self._paused = SimpleQueue[None](), SimpleQueue[None]()
        self._thread = threading.Thread(target=self._run, args=(model, batch), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, batch: Any) -> None:
        _own_thread.forward_pass = self
        self._may_run.get()
        try:
            if not self._cancelled:
                with torch.no_grad():  # grad mode belongs to the thread
                    self.result = forward(model, batch)
        except _Cancelled:
            pass
        except BaseException as error:  # of the network or of a hook: handed on to whoever advances the pass
            self._error = error
        self.paused_at = self.inputs = self.output = None
        self._ended = True
        self._paused.put(None)

    def advance(self) -> str | None:
        """Run to the next layer and return its name; None at the end, and ever after.

        Raises
        ------
        BaseException
            Whatever the forward pass raised on its way there.
        """
        if not self._ended:
            self._may_run.put(None)
            self._paused.get()
        if self._error is not None:
            raise self._error
        return self.paused_at

    def pause(self, name: str, inputs: Tensor, output: Tensor | None) -> None:
        """Called in the pass's own thread by a layer's hook."""
        self.paused_at, self.inputs, self.output = name, inputs, output
        self.pauses += 1
        self._paused.put(None)
        self._may_run.get()
        if self._cancelled:
            raise _Cancelled

    def given(self) -> Tensor:
        """The input of the layer it has paused at."""
        assert self.inputs is not None
        return self.inputs

    def made(self) -> Tensor:
        """The output of the layer it has paused after."""
        assert self.output is not None
        return self.output

    def cancel(self) -> None:
        """End the thread, wherever it is."""
        self._cancelled = True
        self._may_run.put(None)
        self._thread.join()


_own_thread = threading.local()


def _current(group: object) -> Pass | None:
    """The pass that runs in this thread; None if it is of another group, through the same network."""
    current: Pass = _own_thread.forward_pass
    return current if current.group is group else None


@contextmanager
def synchronised_passes(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    *,
    after: bool,
    record: Mapping[str, TensorLocation] | None = None,
) -> Iterator[list[Pass]]:
    """One :class:`Pass` a batch, which pauses before, or ``after``, each of the layers.

    Advance every pass in turn. While some passes have paused, others may go through the same network,
    synchronised among themselves.

    Parameters
    ----------
    model
        In the mode in which it is to run.
    layers
        Name -> the module to pause at.
    batches
        Inputs as for :func:`calibrate`.
    after
        Whether to pause when a layer has run; its output is then there as well.
    record
        Name -> location whose latest tensor is to be found under that name in ``Pass.recorded``.

    Yields
    ------
    list of Pass
        None of them has begun. When the block ends, hooks are gone and threads have ended.
    """
    group = object()
    handles = [_pausing(name, layer, group, after=after) for name, layer in layers.items()]
    for name, location in (record or {}).items():
        handles.append(_recording(name, location, model, group))
    passes: list[Pass] = []
    with hooked(handles):
        try:
            passes.extend(Pass(model, batch, group) for batch in batches)
            yield passes
        finally:
            for one in passes:
                one.cancel()


def _pausing(name: str, layer: nn.Module, group: object, *, after: bool) -> RemovableHandle:
    """Pause the group's passes at the layer."""

    def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        with our_own():
            current = _current(group)
            if current is not None:
                current.pause(name, first_given(args, kwargs), output)

    if after:
        return layer.register_forward_hook(hook, with_kwargs=True)
    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _recording(name: str, location: TensorLocation, model: nn.Module, group: object) -> RemovableHandle:
    """Keep what the group's passes have at that location."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with our_own():
            current = _current(group)
            if current is not None:
                current.recorded[name] = location.pick(args, kwargs, output)

    return model.get_submodule(location.module).register_forward_hook(hook, with_kwargs=True)
