"""What one traced pass tells about the neighbours of each layer: its BatchNorm, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_compress.calibration import forward
from mint_compress.counting import WEIGHTED, evaluating, hooked, shared_parameters
from mint_compress.patches import is_plain

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
        Weighted layers in the order of their calls.
    norms
        Layer -> the BatchNorm that alone reads its output.
    shortcuts
        Layer -> what is added to its output, behind its BatchNorm if it has one.
    """

    calls: tuple[str, ...] = ()
    norms: dict[str, str] = field(default_factory=dict)
    shortcuts: dict[str, Shortcut] = field(default_factory=dict)
    simple: frozenset[str] = frozenset()


def trace(model: nn.Module, batch: Any) -> Topology:
    """Run ``model`` once on a batch, in eval mode and without gradients, and watch who reads what."""
    watch = _Watch()
    with watch.hooked(model), evaluating(model), torch.no_grad(), _Additions(watch.added):
        forward(model, batch)
    once = {name for name in watch.calls if watch.calls.count(name) == 1}
    norm_calls = list(watch.norms.values())
    norms = {
        n: b
        for n, b in watch.norms.items()
        if n in once and watch.readers[n] == 1 and norm_calls.count(b) == 1
    }
    shortcuts = {n: s for n, s in watch.shortcuts.items() if n in once}
    simple = frozenset((once & watch.plain) - shared_parameters(model).keys())
    return Topology(tuple(watch.calls), norms, shortcuts, simple)


class _Watch:
    """Collects what hooks and additions report. Tensors are held, lest an id be used twice."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.norms: dict[str, str] = {}
        self.readers: dict[str, int] = {}
        self.plain: set[str] = set()
        self.shortcuts: dict[str, Shortcut] = {}
        self._held: list[Tensor] = []
        self._layer_of: dict[int, str] = {}
        self._branch_of: dict[int, str] = {}
        self._seen_at: dict[int, tuple[Shortcut, int]] = {}
        self._latest: dict[Shortcut, list[tuple[int, int]]] = {}

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
        handles = [m.register_forward_hook(self._hook(n)) for n, m in leaves]
        with hooked(handles):
            yield

    def _hook(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not inputs or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
                return
            given = inputs[0]
            source = self._layer_of.get(id(given))
            if source is not None:
                self.readers[source] = self.readers.get(source, 0) + 1
            weighted = isinstance(module, WEIGHTED)
            if weighted:
                self._see(given, Shortcut(name, "input"))
                self.calls.append(name)
                if is_plain(module, given, output):
                    self.plain.add(name)
                self._layer_of[id(output)] = self._branch_of[id(output)] = name
            elif source is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.track_running_stats:
                    self.norms[source] = name
                self._branch_of[id(output)] = source
            self._see(output, Shortcut(name, "output"))
            self._held += [given, output]

        return see

    def _see(self, tensor: Tensor, where: Shortcut) -> None:
        self._seen_at.setdefault(id(tensor), (where, len(self.calls)))
        self._latest.setdefault(where, []).append((len(self.calls), id(tensor)))

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


class _Additions(TorchFunctionMode):
    """Reports every sum of two tensors."""

    def __init__(self, added: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self._added = added

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func in ADDITIONS
            and len(args) > 1
            and isinstance(args[0], Tensor)
            and isinstance(args[1], Tensor)
        ):
            self._added(args[0], args[1])
        return func(*args, **(kwargs or {}))
