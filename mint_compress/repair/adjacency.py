"""What one traced pass tells about the neighbours of each layer: its BatchNorm, and what is added to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.counting import shared_parameters
from mint_compress.nn.im2col import is_plain
from mint_compress.nn.io import forward, tensors_in
from mint_compress.nn.layers import WEIGHTED

ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}


@dataclass(frozen=True)
class Shortcut:
    """A tensor that is added to a layer's (normalised) output, and where it was seen before.

    ``side`` of ``module`` ("input" or "output") carries it already when the layer is called.
    """

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Topology:
    """Neighbours of the weighted layers.

    Attributes
    ----------
    calls
        Weighted layers in the order of their calls, as often as they are called.
    norms
        Layer -> the BatchNorm that alone reads its output, and reads nothing else.
    shortcuts
        Layer -> what is added to its output, behind its BatchNorm if it has one; of layers that are
        called once.
    simple
        Layers that share no parameter and are plain linear maps at every call.
    """

    calls: tuple[str, ...] = ()
    norms: dict[str, str] = field(default_factory=dict)
    shortcuts: dict[str, Shortcut] = field(default_factory=dict)
    simple: frozenset[str] = frozenset()


def trace(model: nn.Module, batch: Any) -> Topology:
    """Run ``model`` once on a batch, in eval mode and without gradients, and watch who reads what."""
    watch = _Watch()
    with watch.hooked(model), evaluating(model), torch.no_grad(), _Operations(watch):
        watch.read(forward(model, batch))
    times = Counter(watch.calls)
    norm_times = Counter(norm for _, norm in watch.norms)
    # at every call of the layer this norm alone reads what it gives, and the norm reads nothing else
    norms = {
        layer: norm
        for (layer, norm), count in Counter(watch.norms).items()
        if layer is not None and count == times[layer] == watch.readers[layer] == norm_times[norm]
    }
    shortcuts = {n: s for n, s in watch.shortcuts.items() if times[n] == 1}
    simple = frozenset(times.keys() - watch.odd - shared_parameters(model).keys())
    return Topology(tuple(watch.calls), norms, shortcuts, simple)


class _Watch:
    """Collects what hooks and additions report. Tensors are held, lest an id be used twice."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.norms: list[tuple[str | None, str]] = []
        self.readers: dict[str, int] = {}
        self.odd: set[str] = set()
        self.shortcuts: dict[str, Shortcut] = {}
        self._looking = False
        self._held: list[Tensor] = []
        self._layer_of: dict[int, str] = {}
        self._branch_of: dict[int, str] = {}
        self._seen_at: dict[int, tuple[Shortcut, int]] = {}
        self._latest: dict[Shortcut, list[tuple[int, int]]] = {}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
        handles = [m.register_forward_hook(self._hook(n), with_kwargs=True) for n, m in leaves]
        with hooked(handles):
            yield

    def _hook(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = first_given(args, kwargs)
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                return
            source = self._layer_of.get(id(given))
            weighted = isinstance(module, WEIGHTED)
            if weighted:
                self._see(given, Shortcut(name, "input"))
                self.calls.append(name)
                self._looking = True
                if not is_plain(module, given, output):
                    self.odd.add(name)
                self._looking = False
                self._layer_of[id(output)] = self._branch_of[id(output)] = name
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.track_running_stats:
                    self.norms.append((source, name))
                if source is not None:
                    self._branch_of[id(output)] = source
            self._see(output, Shortcut(name, "output"))
            self._held += [given, output]

        return see

    def _see(self, tensor: Tensor, where: Shortcut) -> None:
        self._seen_at.setdefault(id(tensor), (where, len(self.calls)))
        self._latest.setdefault(where, []).append((len(self.calls), id(tensor)))

    def read(self, values: Any) -> None:
        """An operation, or whoever called the network, has got these."""
        if self._looking:  # the operation is one of ours
            return
        for tensor in tensors_in(values):
            layer = self._layer_of.get(id(tensor))
            if layer is not None:
                self.readers[layer] = self.readers.get(layer, 0) + 1

    def added(self, one: Tensor, other: Tensor) -> None:
        """``one + other`` was computed."""
        for branch, shortcut in ((one, other), (other, one)):
            layer = self._branch_of.get(id(branch))
            seen = self._seen_at.get(id(shortcut))
            if layer is None or seen is None or one.shape != other.shape:
                continue
            where, calls_then = seen
            call = self.calls.index(layer)
            if calls_then > call or where.module == layer:
                continue
            # a module that is called again and again shows its latest tensor only
            if [held for then, held in self._latest[where] if then <= call][-1] == id(shortcut):
                self.shortcuts[layer] = where


class _Operations(TorchFunctionMode):
    """Reports what every operation that makes a tensor reads, and every sum of two tensors."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func in ADDITIONS
            and len(args) > 1
            and isinstance(args[0], Tensor)
            and isinstance(args[1], Tensor)
        ):
            self._watch.added(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        if any(True for _ in tensors_in(result)):  # not a shape, nor a device
            self._watch.read((args, kwargs))
        return result
