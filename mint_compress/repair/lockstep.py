"""Forward passes that run side by side and halt together at chosen layers.

Repairing a network layer after layer needs, at every layer, what the layers before it give *after*
their repair. Starting every forward pass anew for each layer costs time quadratic in depth. Here
each batch has a thread of its own that halts at the layer, keeps its activations, and goes on once
the layer has been repaired. One thread runs at a time, in a fixed order, so results do not depend
on scheduling, and any ``forward`` written in Python will do: nothing is traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mint_compress.nn.contexts import first_given, hooked
from mint_compress.nn.io import forward


class _Abandoned(BaseException):
    """Ends a thread whose pass is no longer wanted."""


class Pass:
    """One forward pass that halts at layers.

    Attributes
    ----------
    at
        Name of the layer it has halted at, None once the pass has ended.
    inputs, output
        What that layer was given, and gave (``output`` only when halting after the layer).
    together
        The same object for all passes that halt together.
    remembered
        Name -> the latest tensor seen at the points that :func:`lockstep` was asked to remember.
    result
        What the network gave, once the pass has ended.
    """

    def __init__(self, model: nn.Module, batch: Any, together: object) -> None:
        self.together = together
        self.at: str | None = None
        self.inputs: Tensor | None = None
        self.output: Tensor | None = None
        self.remembered: dict[str, Tensor] = {}
        self.result: Any = None
        self._error: BaseException | None = None
        self._abandoned = self._ended = False
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(model, batch), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, batch: Any) -> None:
        _own.current = self
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():  # grad mode belongs to the thread
                    self.result = forward(model, batch)
        except _Abandoned:
            pass
        except BaseException as error:  # handed on to whoever advances the pass
            self._error = error
        self.at = self.inputs = self.output = None
        self._ended = True
        self._halted.release()

    def advance(self) -> str | None:
        """Run to the next layer and return its name; None at the end, and ever after."""
        if not self._ended:
            self._go.release()
            self._halted.acquire()
        if self._error is not None:
            raise self._error
        return self.at

    def halt(self, name: str, inputs: Tensor, output: Tensor | None) -> None:
        """Called in the pass's own thread by a layer's hook."""
        self.at, self.inputs, self.output = name, inputs, output
        self._halted.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def halted_output(self) -> Tensor:
        """The output of the layer it has halted after."""
        assert self.output is not None
        return self.output

    def abandon(self) -> None:
        """End the thread, wherever it is."""
        self._abandoned = True
        self._go.release()
        self._thread.join()


_own = threading.local()


@dataclass(frozen=True)
class Point:
    """What flows into (``input``) or out of (``output``) a module."""

    module: nn.Module
    side: Literal["input", "output"]


def _remember_hook(name: str, point: Point, together: object) -> Any:
    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if _own.current.together is together:
            seen = first_given(args, kwargs) if point.side == "input" else output
            _own.current.remembered[name] = seen

    return see


@contextmanager
def lockstep(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Any],
    *,
    after: bool,
    remember: Mapping[str, Point] | None = None,
) -> Iterator[list[Pass]]:
    """One :class:`Pass` a batch; they halt before, or ``after``, each of the layers.

    Advance every pass in turn. What flows through the points to ``remember`` is found in
    ``Pass.remembered``. On leaving, hooks are gone and threads have ended. While some passes have halted,
    others may go through the same network in a lockstep of their own.
    """
    together = object()

    def halt(name: str, inputs: Tensor, output: Tensor | None) -> None:
        # other passes through the same network may be on their way
        if _own.current.together is together:
            _own.current.halt(name, inputs, output)

    def before_hook(name: str) -> Any:
        return lambda layer, args, kwargs: halt(name, first_given(args, kwargs), None)

    def after_hook(name: str) -> Any:
        return lambda layer, args, kwargs, output: halt(name, first_given(args, kwargs), output)

    handles = [
        layer.register_forward_hook(after_hook(name), with_kwargs=True)
        if after
        else layer.register_forward_pre_hook(before_hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    for name, point in (remember or {}).items():
        hook = _remember_hook(name, point, together)
        handles.append(point.module.register_forward_hook(hook, with_kwargs=True))
    passes: list[Pass] = []
    with hooked(handles):
        try:
            passes.extend(Pass(model, batch, together) for batch in batches)
            yield passes
        finally:
            for one in passes:
                one.abandon()
