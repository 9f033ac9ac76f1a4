"""Channels followed through forward passes: the recorder of which layer sides hold which channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mint_compress.errors import foreign, our_own
from mint_compress.graph.groups import HEAD, Side
from mint_compress.graph.label_meeting import meet
from mint_compress.graph.label_rules import follow
from mint_compress.graph.label_store import Labels
from mint_compress.graph.labels import Reading, spread
from mint_compress.graph.written_numbers import Place, remembering
from mint_compress.graph.written_sizes import WatchingSizes, WrittenSizes
from mint_compress.nn.contexts import first_given, forget_computed_, hooked
from mint_compress.nn.folding import computed_weights
from mint_compress.nn.input_selection import Selecting
from mint_compress.nn.io import tensors_in
from mint_compress.nn.layers import NORMS, OVER_CHANNELS, WEIGHTED, in_channels, norm_width, out_channels
from mint_compress.nn.recurrent import RECURRENT

MIXES = "mixes places, not channels"
IN_NO_DIMENSION = "the channels of a parameter lie in no single dimension"

LAYERS = (*WEIGHTED, *NORMS, nn.Embedding)
OPAQUE = (nn.MultiheadAttention, *RECURRENT)
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


@dataclass(frozen=True, eq=False)
class Recording:
    """What passes over a network have shown.

    Attributes
    ----------
    touches
        The sides of its layers in the order of the calls, then of its bare parameters. Channels that go
        together have the same unit.
    held
        Unit -> why its channels stay.
    unsliceable
        Layer -> why it cannot be cut, of those that are used in ways that no cut can follow.
    training_only
        Layers that only a pass as in training reaches.
    needs_labels
        What there is that Torch-Pruning's graph does not know or cannot afford, if anything: layers that
        only training uses; linear layers that read tokens, and attention, with which its index maps multiply.
    parts
        Of every cut through channels (a chunk, a split, a slice) the units in each part.
    written
        The sizes among the modules' attributes by which channels are cut or reshaped.
    """

    touches: tuple[Touch, ...]
    held: Mapping[int, str]
    unsliceable: Mapping[str, str]
    training_only: Set[str]
    needs_labels: str | None
    parts: tuple[tuple[Tensor, ...], ...] = ()
    written: WrittenSizes = field(default_factory=WrittenSizes)

    @property
    def sliceable(self) -> set[str]:
        """Layers that some pass has called and that can be cut."""
        return {t.layer for t in self.touches if t.kind != "parameter"} - self.unsliceable.keys()


class Recorder:
    """Follows the channels of a network through its passes.

    Every tensor carries the labels of its channels, element by element; a layer reads labels and
    gives channels of its own, every other operation moves labels as it moves values, and where two
    tensors meet element by element their channels go together. This costs one pass, whatever the
    topology, and knows windows, heads, shuffles and halves.

    Parameters
    ----------
    model
        In eval mode, on the CPU.
    reading
        What goes together beyond what a pass shows. With any, what the network takes from the shapes of
        tensors is followed as well: it is then given tuples in their place.
    """

    def __init__(self, model: nn.Module, reading: Reading | None = None) -> None:
        self._model = model
        self._needs_labels: str | None = None
        self._unsliceable: dict[str, str] = {}
        self._training_only: set[str] = set()
        self._touches: dict[tuple[str, Side], Touch] = {}
        self._layers: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, (*LAYERS, *OPAQUE)):
                self._layers[module] = name
        self.paused_by = 0
        self.owner = {id(p): m for m in self._layers for p in m.parameters()}
        bare = {n: p for n, p in model.named_parameters() if id(p) not in self.owner}
        self.labels = Labels(bare, reading)
        self.units = self.labels.units
        varying = self.units.varying if reading else None
        self._sizes = WatchingSizes(self.labels.of, lambda: self.paused_by > 0, varying)
        self._numbers: dict[Place, int] = {}

    @property
    def touches(self) -> tuple[Touch, ...]:
        """The sides of the layers that have been called."""
        return tuple(self._touches.values())

    @property
    def reached(self) -> set[str]:
        """Layers that some pass has called."""
        return {layer for layer, _ in self._touches} | self._unsliceable.keys()

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """Follow the channels through one pass, and give its outputs. What an earlier pass showed stays true.

        Raises
        ------
        ForeignError
            The network's forward pass fails.
        OwnFault
            What follows it does.
        """
        handles = []
        for module in self._layers:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        self.paused_by = 0
        forget_computed_(self._model)
        with hooked(handles), torch.no_grad(), ExitStack() as modes:
            modes.enter_context(_Operations(self))
            modes.enter_context(_Calls(self))
            modes.enter_context(self._sizes)
            self._numbers |= modes.enter_context(remembering(self._model, (*LAYERS, *OPAQUE)))
            with foreign("The network's forward pass"):
                given = self._model(*inputs)
        with our_own():
            for output in tensors_in(given):
                self.units.freeze(self.labels.of(output), HEAD)
        self.labels.forget()
        if self.labels.multiplied:
            self._need_labels("channels are multiplied with channels")
        return given

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operation outside the layers gives."""
        return func(*args, **kwargs)

    def only_in_training(self, layers: Set[str]) -> None:
        """The last pass was made as in training, and no other reaches these layers."""
        self._training_only |= layers
        self._need_labels(f"only training uses {min(layers)}")

    def hold(self, layers: Set[str], why: str) -> None:
        """Leave alone whatever these layers read or give."""
        for touch in self._touches.values():
            if touch.layer in layers:
                self.units.freeze(touch.units, f"{why} ({touch.layer})")

    def recording(self) -> Recording:
        """What the passes have shown."""
        touches = [*self._touches.values(), *self._parameters()]
        return Recording(
            touches=tuple(replace(t, units=self.units.find(t.units)) for t in touches),
            held=self.units.frozen(),
            unsliceable=self._unsliceable,
            training_only=self._training_only,
            needs_labels=self._needs_labels,
            parts=tuple(tuple(self.units.find(p).unique() for p in cut) for cut in self.labels.parts),
            written=self._written(),
        )

    def _written(self) -> WrittenSizes:
        found = [
            replace(e, labels=tuple(self.units.find(own) for own in e.labels)) for e in self._sizes.equations
        ]
        made = {t.layer: t.units for t in self._touches.values() if t.side == "out"} | self.labels.elements
        return WrittenSizes(
            self._numbers | {place: own.shape[dim] for place, (own, dim) in self._sizes.shapes.items()},
            found,
            {name: self.units.find(own) for name, own in made.items()},
            {place: (self.units.find(own), dim) for place, (own, dim) in self._sizes.shapes.items()},
            reading=self.labels.reading,
        )

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
            why = "its weights are used outside of the layer"
            if computed := next(computed_weights(layer), None):
                why = (
                    f"its weight is computed from others ({computed.kind}); {computed.remedy} would end that"
                )
            self._unsliceable.setdefault(name, f"{why} ({name})")

    def _need_labels(self, why: str) -> None:
        self._needs_labels = self._needs_labels or why

    # --- layers --------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.paused_by += 1

    def _leave(self, module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        self.paused_by -= 1
        if self.paused_by:
            return
        with our_own(), self.paused():
            given = [t for t in tree_iter((inputs, named)) if isinstance(t, Tensor)]
            if isinstance(module, RECURRENT) and self._is_read(module, first_given(inputs, named), given):
                return
            if isinstance(module, OPAQUE) or len(given) != 1 or not isinstance(output, Tensor):
                self._refuse(module, given, "reads and gives fixed widths")
            else:
                self.call(module, given[0], output)

    def _is_read(self, module: Any, read: Any, given: list[Tensor]) -> bool:
        """Whether a recurrent layer reads channels, which then may go; what it gives and its states stay."""
        if not isinstance(read, Tensor) or read.shape[-1] != module.input_size:
            return False
        labels, name = self.labels.of(read), self._layers[module]
        if self._mixes_places(labels, labels.ndim - 1):
            return False
        self._need_labels(f"{name} is recurrent")
        self._touch(name, "recurrent", "in", self.units.across(labels, labels.ndim - 1))
        for state in given:
            if state is not read:
                self.units.freeze(self.labels.of(state), f"they are states of a recurrent layer ({name})")
        return True

    def _refuse(self, module: nn.Module, given: list[Tensor], why: str) -> None:
        reason = f"{type(module).__name__} {why} ({self._layers[module]})"
        for tensor in given:
            self.units.freeze(self.labels.of(tensor), reason)
        for name, part in module.named_modules(prefix=self._layers[module]):
            if isinstance(part, (*LAYERS, *OPAQUE)):
                self._unsliceable.setdefault(name, reason)

    def call(self, module: Any, given: Tensor, output: Tensor) -> None:
        """A layer read one tensor and gave another."""
        name, labels = self._layers[module], self.labels.of(given)
        if any(True for child in module.children() for _ in child.parameters()):
            why = "has layers of its own"
            if made := next(computed_weights(module), None):
                why = f"computes its weight from others ({made.kind}); {made.remedy} would end that"
            self._unsliceable.setdefault(name, f"{type(module).__name__} {why} ({name})")
        if isinstance(module, nn.Embedding):
            units = self._touch(name, "embedding", "out", self._given(name, module.embedding_dim))
            self.labels.put(output, spread(units, output.ndim - 1, output.shape))
        elif isinstance(module, nn.PReLU) and module.num_parameters == 1:
            self.labels.put(output, labels)
        else:
            if isinstance(module, Selecting):
                self.units.freeze(labels, f"a layer selects among its channels ({name})")
                self._need_labels(f"{name} selects among its inputs")
                labels = module.select(labels)
            self._read(module, given, labels, output)

    def _read(self, module: Any, given: Tensor, labels: Tensor, output: Tensor) -> None:
        """A layer with channels on both sides read labels."""
        dim = _channel_dim(module, labels, self.units.varying(labels))
        inside, outside = _widths(module)
        fits = output.ndim == labels.ndim and 0 <= dim < labels.ndim
        if not fits or (labels.shape[dim], output.shape[dim]) != (inside, outside):
            self._refuse(module, [given], "is called in a way that is not understood")
        elif self.labels.has_heads(labels, {dim}):
            self._apart(module, labels, output, dim)
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
        self._need_labels(f"{name} mixes places")
        self._unsliceable.setdefault(name, f"{type(module).__name__} {MIXES} ({name})")
        shape = [
            o if d == dim else s for d, (s, o) in enumerate(zip(labels.shape, output.shape, strict=True))
        ]
        self.labels.put(output, self.units.find(labels).narrow(dim, 0, 1).expand(shape))

    def _apart(self, module: Any, labels: Tensor, output: Tensor, dim: int) -> None:
        """A layer that is applied to every head: heads go through it, and it stays as it is."""
        name = self._layers[module]
        self._unsliceable.setdefault(name, f"{type(module).__name__} is applied to every head ({name})")
        heads = self.labels.as_heads(labels, {dim})
        vary = self.units.varying(heads)
        for place in (d for d in range(heads.ndim) if d not in vary):
            heads = heads.narrow(place, 0, 1)  # of places there may be fewer in the output
        self.labels.put(output, heads.expand(output.shape))

    def _weighted(self, module: Any, labels: Tensor, output: Tensor, dim: int) -> None:
        name, units = self._layers[module], self.units
        read = units.across(labels, dim)
        linear = isinstance(module, nn.Linear)
        if linear and labels.ndim > 2:
            self._need_labels(f"{name} reads tokens")
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
            self.units.freeze(
                read, f"{type(module).__name__} normalises more than the channels ({self._layers[module]})"
            )
        else:
            self._touch(self._layers[module], "norm", "both", read, groups)
        self.labels.put(output, spread(read, dim, output.shape))

    def _given(self, name: str, channels: int) -> Tensor:
        """The units of a layer's outputs: the same at each call."""
        before = self._touches.get((name, "out"))
        if before is None:
            self.labels.made.append(self.units.fresh(channels))
            return self.labels.made[-1]
        return before.units

    def _touch(self, name: str, kind: str, side: Side, units: Tensor, groups: int = 1) -> Tensor:
        """Record a side of a layer, or join it with what an earlier call showed."""
        before = self._touches.setdefault((name, side), Touch(name, kind, side, units, groups))
        self.units.join(before.units, units)
        if bool(((before.units == 0) != (units == 0)).any()):
            for labels in (before.units, units):
                self.units.freeze(labels, f"a layer reads other channels at another call ({name})")
        return units

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
                self.units.freeze(labels, f"{IN_NO_DIMENSION} ({name})")
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
    if issubclass(kind, OVER_CHANNELS):
        width = module.normalized_shape
        # subclasses normalise (N, C, H, W): the dimension of that size along which labels differ
        fitting = [d for d in (last, 1) if d <= last and labels.shape[d] == width[-1] and d in vary]
        return last - len(width) + 1 if len(width) > 1 else fitting[0] if fitting else last
    return 1


def _widths(module: Any) -> tuple[int, int]:
    if isinstance(module, WEIGHTED):
        return in_channels(module), out_channels(module)
    several = len(getattr(module, "normalized_shape", ())) > 1
    return (int(module.normalized_shape[0]) if several else norm_width(module),) * 2


class _Calls(TorchFunctionMode):
    """Layers that a network computes by itself, from the weights of their modules."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder, kwargs = self._recorder, kwargs or {}
        if recorder.paused_by or func not in FUNCTIONS:
            return func(*args, **kwargs)
        values = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        module: Any = recorder.owner.get(id(values["weight"]))
        if module is None:
            return func(*args, **kwargs)
        with recorder.paused():
            output = func(*args, **kwargs)
            with our_own():
                recorder.call(module, values["input"], output)
                if values.get("bias") is not None and values["bias"] is not module.bias:
                    self._add(values["bias"], output, dim=output.ndim - 1 if func is F.linear else 1)
        return output

    def _add(self, bias: Tensor, output: Tensor, dim: int) -> None:
        """A bias that is not the layer's own met the layer's outputs."""
        labels, shape = self._recorder.labels, [1] * output.ndim
        shape[dim] = len(bias)
        meet(labels.units, [labels.of(output), labels.of(bias).reshape(shape)], output.shape)


class _Operations(TorchDispatchMode):
    """Every operation outside the layers, on the values and on their labels."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder, kwargs = self._recorder, kwargs or {}
        if recorder.paused_by:
            return func(*args, **kwargs)
        output = recorder.compute(func, args, kwargs)
        with our_own(), recorder.paused():
            tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
            for tensor in tensors:
                recorder.used_elsewhere(tensor)
            if any(recorder.labels.knows(t) for t in tensors):
                follow(recorder.labels, func, args, kwargs, output)
        return output
