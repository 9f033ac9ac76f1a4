"""Channels followed through forward passes: which layer sides hold the same channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mint_compress.graph.groups import ChannelGroup, Member, Side
from mint_compress.graph.label_rules import Labels, follow, meet
from mint_compress.graph.labels import spread
from mint_compress.nn.contexts import hooked
from mint_compress.nn.input_selection import Selecting
from mint_compress.nn.io import tensors_in
from mint_compress.nn.layers import NORMS, WEIGHTED, in_channels, out_channels

MIXES = "mixes places, not channels"
HEAD = "head: its channels are the network's outputs"

LAYERS = (*WEIGHTED, *NORMS, nn.Embedding)
OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Modules that fix the width of what they read and of what they give."""

FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
"""What a network may call itself with the weight of one of its layers."""


@dataclass(frozen=True, eq=False)
class Touch:
    """One side of one layer (or a bare parameter), with the unit of each of its channels."""

    layer: str
    kind: str
    side: Side
    units: Tensor
    channel_groups: int = 1
    dim: int = 0


class Trace:
    """What passes over a network have shown: its layers' sides in the order of the calls, and the units.

    Every tensor carries the labels of its channels, element by element; a layer reads labels and
    gives channels of its own, every other operation moves labels as it moves values, and where two
    tensors meet element by element their channels go together. This costs one pass, whatever the
    topology, and knows windows, heads, shuffles and halves.

    Parameters
    ----------
    model
        In eval mode, on the CPU.

    Attributes
    ----------
    beyond_graph
        Whether there is what Torch-Pruning's graph does not know or cannot afford: layers that only
        training uses; linear layers that read tokens, and attention, with which its index maps multiply.
    complete
        Whether the last pass could be followed to its end.
    late
        Layers that only a pass as in training reaches; whoever makes that pass says so.
    odd
        Layer -> why it is left alone, of those that are used in ways that no cut can follow.
    """

    def __init__(self, model: nn.Module) -> None:
        self.beyond_graph = False
        self.complete = False
        self.late: set[str] = set()
        self.odd: dict[str, str] = {}
        self._model = model
        self.paused_by = 0
        self._touches: dict[tuple[str, Side], Touch] = {}
        self._layers: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, (*LAYERS, *OPAQUE)):
                self._layers[module] = name
        self.owner = {id(p): m for m in self._layers for p in m.parameters()}
        self.labels = Labels({n: p for n, p in model.named_parameters() if id(p) not in self.owner})
        self.units = self.labels.units

    @property
    def reached(self) -> set[str]:
        """Layers that some pass has called."""
        return {layer for layer, _ in self._touches} | self.odd.keys()

    def run(self, inputs: tuple[Any, ...]) -> None:
        """Follow the channels through one pass. What an earlier pass showed stays true."""
        handles = []
        for module in self._layers:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        self.paused_by, self.complete = 0, False
        with hooked(handles), torch.no_grad(), ExitStack() as modes:
            modes.enter_context(_Operations(self))
            modes.enter_context(_Calls(self))
            outputs = list(tensors_in(self._model(*inputs)))
        for output in outputs:
            self.units.freeze(self.labels.of(output), HEAD)
        self.labels.forget()
        self.beyond_graph |= self.labels.products
        self.complete = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away while a layer computes."""
        self.paused_by += 1
        try:
            yield
        finally:
            self.paused_by -= 1

    def used_elsewhere(self, tensor: Any) -> None:
        """A tensor took part in an operation outside of the layers."""
        layer = self.owner.get(id(tensor))
        if layer is not None:
            name = self._layers[layer]
            self.odd.setdefault(name, f"its weights are used outside of the layer ({name})")

    def refuse(self, layers: set[str], why: str) -> None:
        """Leave alone whatever these layers read or give."""
        for touch in self._touches.values():
            if touch.layer in layers:
                self.units.freeze(touch.units, f"{why} ({touch.layer})")

    # --- layers --------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.paused_by += 1

    def _leave(self, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        self.paused_by -= 1
        if self.paused_by:
            return
        given = [t for t in tree_iter((inputs, named)) if isinstance(t, Tensor)]
        with self.paused():
            if isinstance(module, OPAQUE) or len(given) != 1 or not isinstance(output, Tensor):
                self._refuse(module, given, "reads and gives fixed widths")
            else:
                self.call(module, given[0], output)

    def _refuse(self, module: nn.Module, given: list[Tensor], why: str) -> None:
        reason = f"{type(module).__name__} {why} ({self._layers[module]})"
        for tensor in given:
            self.units.freeze(self.labels.of(tensor), reason)
        for name, part in module.named_modules(prefix=self._layers[module]):
            if isinstance(part, (*LAYERS, *OPAQUE)):
                self.odd.setdefault(name, reason)

    def call(self, module: Any, given: Tensor, output: Tensor) -> None:
        """A layer read one tensor and gave another."""
        name, labels = self._layers[module], self.labels.of(given)
        if any(True for child in module.children() for _ in child.parameters()):
            why = "has layers of its own"
            if is_parametrized(module):
                why = "computes its weight from others; remove_parametrizations would end that"
            self.odd.setdefault(name, f"{type(module).__name__} {why} ({name})")
        if isinstance(module, nn.Embedding):
            units = self._touch(name, "embedding", "out", self._given(name, module.embedding_dim))
            self.labels.put(output, spread(units, output.ndim - 1, output.shape))
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            self.labels.put(output, labels)
        else:
            if isinstance(module, Selecting):
                self.units.freeze(labels, f"a layer selects among its channels ({name})")
                self.beyond_graph = True
                labels = module.select(labels)
            dim = _channel_dim(module, labels, self.units.varying(labels))
            inside, outside = _widths(module)
            fits = output.ndim == labels.ndim and 0 <= dim < labels.ndim
            if not fits or (labels.shape[dim], output.shape[dim]) != (inside, outside):
                self._refuse(module, [given], "is called in a way that is not understood")
            elif not isinstance(module, NORMS) and self._mixes_places(labels, dim):
                self._pass_over(module, given, output, dim)
            elif isinstance(module, WEIGHTED):
                self._weighted(module, labels, output, dim)
            else:
                self._norm(module, labels, output, dim)

    def _mixes_places(self, labels: Tensor, dim: int) -> bool:
        vary = self.units.varying(labels)
        return bool(vary) and dim not in vary

    def _pass_over(self, module: Any, given: Tensor, output: Tensor, dim: int) -> None:
        """A layer that mixes places (tokens): channels run along another dimension, and go through."""
        labels, name = self.labels.of(given), self._layers[module]
        kernel = getattr(module, "kernel_size", (1,))
        if set(kernel) != {1}:
            self._refuse(module, [given], "reads along a dimension that is not the channels'")
            return
        self.beyond_graph = True
        self.odd.setdefault(name, f"{type(module).__name__} {MIXES} ({name})")
        shape = [
            o if d == dim else s for d, (s, o) in enumerate(zip(labels.shape, output.shape, strict=True))
        ]
        self.labels.put(output, self.units.find(labels).narrow(dim, 0, 1).expand(shape))

    def _weighted(self, module: Any, labels: Tensor, output: Tensor, dim: int) -> None:
        name, units = self._layers[module], self.units
        read = units.across(labels, dim)
        linear = isinstance(module, nn.Linear)
        self.beyond_graph |= linear and labels.ndim > 2
        groups = 1 if linear else module.groups
        if 1 < groups == len(read) == output.shape[dim]:
            self._touch(name, "depthwise", "both", read)
            self.labels.put(output, spread(read, dim, output.shape))
            return
        kind = "linear" if linear else "conv"
        self._touch(name, kind, "in", units.folded(read, groups), groups)
        made = self._touch(name, kind, "out", self._given(name, output.shape[dim]), groups)
        self.labels.put(output, spread(units.folded(made, groups), dim, output.shape))

    def _norm(self, module: Any, labels: Tensor, output: Tensor, dim: int) -> None:
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        read = self.units.folded(self.units.across(labels, dim), groups)
        if len(getattr(module, "normalized_shape", (1,))) > 1:
            self._refuse(module, [output], "normalises more than the channels")
            self.units.freeze(read, f"LayerNorm normalises more than the channels ({self._layers[module]})")
        else:
            self._touch(self._layers[module], "norm", "both", read, groups)
        self.labels.put(output, spread(read, dim, output.shape))

    def _given(self, name: str, channels: int) -> Tensor:
        """The units of a layer's outputs: the same at each call."""
        before = self._touches.get((name, "out"))
        return before.units if before else self.units.fresh(channels)

    def _touch(self, name: str, kind: str, side: Side, units: Tensor, groups: int = 1) -> Tensor:
        """Record a side of a layer, or join it with what an earlier call showed."""
        before = self._touches.setdefault((name, side), Touch(name, kind, side, units, groups))
        self.units.join(before.units, units)
        if bool(((before.units == 0) != (units == 0)).any()):
            for labels in (before.units, units):
                self.units.freeze(labels, f"a layer reads other channels at another call ({name})")
        return units

    # --- groups --------------------------------------------------------------------------------------

    def groups(self) -> list[ChannelGroup]:
        """The channel groups, in the order of their first producers' calls; none of them is proved."""
        touches = list(self._touches.values()) + self._parameters()
        roots = [self.units.find(t.units).numpy() for t in touches]
        component = _components([r for t, r in zip(touches, roots, strict=True) if t.side == "out"])
        position = _positions([r for t, r in zip(touches, roots, strict=True) if t.side == "out"], component)
        members: dict[int, list[Member]] = {}
        for touch, own in zip(touches, roots, strict=True):
            where = np.array([component.get(r, -1) for r in own.tolist()])
            for group in np.unique(where[where >= 0]).tolist():
                channels = np.flatnonzero(where == group)
                positions = np.array([position[r] for r in own[channels].tolist()], dtype=np.int64)
                side = touch.layer, touch.kind, touch.side
                rest = touch.channel_groups, touch.dim, len(own)
                member = Member(*side, channels, positions, *rest, in_training=touch.layer in self.late)
                members.setdefault(group, []).append(member)
        widths: dict[int, int] = {}
        for root, group in component.items():
            widths[group] = max(widths.get(group, 0), position[root] + 1)
        reasons = self._reasons(component)
        found = []
        for group, sides in members.items():
            name = next(m.layer for m in sides if m.side == "out")
            reason = reasons.get(group)
            reason = reason or next((self.odd[m.layer] for m in sides if m.layer in self.odd), None)
            found.append(ChannelGroup(name, widths[group], tuple(sides), reason is None, reason))
        order = {t.layer: place for place, t in enumerate(touches)}
        return sorted(found, key=lambda g: order[g.name])

    def _reasons(self, component: dict[int, int]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        frozen = self.units.frozen()
        for head in (True, False):
            for root, reason in frozen.items():
                if root in component and (reason == HEAD) == head:
                    reasons.setdefault(component[root], reason)
        return reasons

    def _parameters(self) -> list[Touch]:
        """Bare parameters as sides of their own, along the one dimension in which their channels run."""
        found = []
        for name, elements in self.labels.elements.items():
            labels = self.units.find(elements)
            vary = self.units.varying(labels)
            fitting = [d for d in vary if _is_constant_across(labels, d)]
            if fitting:
                along = labels.movedim(fitting[0], 0).reshape(labels.shape[fitting[0]], -1)[:, 0]
                found.append(Touch(name, "parameter", "both", along, 1, fitting[0]))
            elif labels.numel() > 1:
                self.units.freeze(labels, f"the channels of a parameter lie in no single dimension ({name})")
        return found


def _is_constant_across(labels: Tensor, dim: int) -> bool:
    rows = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
    return bool((rows == rows[:, :1]).all())


def _channel_dim(module: Any, labels: Tensor, vary: set[int]) -> int:
    """The dimension that a layer takes for the channels."""
    last, kind = labels.ndim - 1, type(module)
    if issubclass(kind, nn.Linear):
        return last
    if issubclass(kind, WEIGHTED):
        return last - len(module.kernel_size)
    if issubclass(kind, nn.LayerNorm):
        width = module.normalized_shape
        # subclasses normalise (N, C, H, W): the dimension of that size along which labels differ
        fitting = [d for d in (last, 1) if d <= last and labels.shape[d] == width[-1] and d in vary]
        return last - len(width) + 1 if len(width) > 1 else fitting[0] if fitting else last
    return 1


def _widths(module: Any) -> tuple[int, int]:
    if isinstance(module, WEIGHTED):
        return in_channels(module), out_channels(module)
    for attribute in ("num_features", "num_channels", "num_parameters"):
        if hasattr(module, attribute):
            return (int(getattr(module, attribute)),) * 2
    return (int(module.normalized_shape[0]),) * 2


def _components(producers: list[np.ndarray[Any, Any]]) -> dict[int, int]:
    """Root -> group; what one layer gives belongs to one group."""
    leader: dict[int, int] = {}

    def find(root: int) -> int:
        while leader.setdefault(root, root) != root:
            root = leader[root]
        return root

    for roots in producers:
        for root in roots.tolist():
            leader[find(root)] = find(int(roots[0]))
    return {root: find(root) for root in leader}


def _positions(producers: list[np.ndarray[Any, Any]], component: dict[int, int]) -> dict[int, int]:
    """Root -> its position in its group, in the order of the producers' channels."""
    position: dict[int, int] = {}
    widths: dict[int, int] = {}
    for roots in producers:
        for root in roots.tolist():
            if root not in position:
                position[root] = widths.get(component[root], 0)
                widths[component[root]] = position[root] + 1
    return position


class _Calls(TorchFunctionMode):
    """Layers that a network computes by itself, from the weights of their modules."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        trace, kwargs = self._trace, kwargs or {}
        if trace.paused_by or func not in FUNCTIONS:
            return func(*args, **kwargs)
        values = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        module: Any = trace.owner.get(id(values["weight"]))
        if module is None:
            return func(*args, **kwargs)
        with trace.paused():
            output = func(*args, **kwargs)
            trace.call(module, values["input"], output)
            bias = values.get("bias")
            if bias is not None and bias is not module.bias:
                dim = output.ndim - 1 if func is F.linear else 1
                shapes = [1] * output.ndim
                shapes[dim] = len(bias)
                meet(
                    trace.units,
                    [trace.labels.of(output), trace.labels.of(bias).reshape(shapes)],
                    output.shape,
                )
        return output


class _Operations(TorchDispatchMode):
    """Every operation outside the layers, on the values and on their labels."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        trace = self._trace
        if not trace.paused_by:
            with trace.paused():
                tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
                for tensor in tensors:
                    trace.used_elsewhere(tensor)
                if any(trace.labels.knows(t) for t in tensors):
                    follow(trace.labels, func, args, kwargs, output)
        return output
