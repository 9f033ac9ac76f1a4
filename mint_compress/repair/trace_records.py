"""What is recorded of one forward pass: the layers called, what they made, and who reads and adds that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_compress.errors import our_own
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.io import forward, tensors_in
from mint_compress.nn.layers import WEIGHTED, FrozenBatchNorm
from mint_compress.nn.linear_maps import linear_map
from mint_compress.nn.recurrent import RECURRENT, is_usual
from mint_compress.repair.tensor_location import TensorLocation

ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}


@dataclass(eq=False)
class TensorRecord:
    """One tensor that a module was given or gave.

    Attributes
    ----------
    tensor
        Held until the end, lest another tensor get its id.
    layer
        The weighted layer whose output it is.
    branch
        The weighted layer whose output it is, or that of the BatchNorm behind the layer.
    """

    tensor: Tensor
    layer: str | None = None
    branch: str | None = None


@dataclass(frozen=True, eq=False)
class Sighting:
    """A tensor at a location, and how many calls of weighted layers had begun before."""

    record: TensorRecord
    location: TensorLocation
    calls: int


@dataclass(frozen=True, eq=False)
class Addition:
    """``branch + other``, where the first is what a layer gave (see :class:`TensorRecord`)."""

    layer: str
    other: TensorRecord


@dataclass(eq=False)
class LayerRecord:
    """A weighted layer: how many operations read what it gave, and whether it was a linear map each time."""

    reads: int = 0
    is_plain: bool = True


@dataclass(eq=False)
class TraceRecords:
    """Everything recorded in a pass, in the order in which it happened.

    Attributes
    ----------
    calls
        Weighted layers, as often as they are called.
    norm_calls
        ``(layer, norm)`` of each call of a BatchNorm: whose output it was given, None where no layer's.
    layers
        Weighted layer -> its record.
    sightings
        Of the inputs of weighted layers, and the outputs of all modules without children.
    additions
        Sums of two tensors of one shape, once for each of the two that is a layer's branch.
    """

    calls: list[str] = field(default_factory=list)
    norm_calls: list[tuple[str | None, str]] = field(default_factory=list)
    layers: defaultdict[str, LayerRecord] = field(default_factory=lambda: defaultdict(LayerRecord))
    sightings: list[Sighting] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    _tensors: dict[int, TensorRecord] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> TensorRecord:
        """The tensor's record, a new one if it has none."""
        return self._tensors.setdefault(id(tensor), TensorRecord(tensor))

    def see(self, tensor: Tensor, location: TensorLocation) -> None:
        """The tensor is at that location now."""
        self.sightings.append(Sighting(self.of(tensor), location, len(self.calls)))

    def read(self, values: Any) -> None:
        """An operation, or whoever called the network, was given these."""
        for tensor in tensors_in(values):
            record = self._tensors.get(id(tensor))
            if record is not None and record.layer is not None:
                self.layers[record.layer].reads += 1

    def add(self, one: Tensor, other: Tensor) -> None:
        """``one + other`` is computed."""
        records = self._tensors.get(id(one)), self._tensors.get(id(other))
        if one.shape != other.shape:
            return
        for branch, shortcut in (records, records[::-1]):
            if branch is not None and branch.branch is not None and shortcut is not None:
                self.additions.append(Addition(branch.branch, shortcut))


def record_pass(model: nn.Module, batch: Any) -> TraceRecords:
    """Run ``model`` once on a batch, in eval mode and without gradients, and record who reads what."""
    records = TraceRecords()
    operations = _Operations(records)
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
    handles = [m.register_forward_hook(_hook(n, records, operations), with_kwargs=True) for n, m in leaves]
    with hooked(handles), evaluating(model), torch.no_grad(), operations:
        records.read(forward(model, batch))
    return records


def _hook(name: str, records: TraceRecords, operations: _Operations) -> Callable[..., None]:
    @our_own()
    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = first_given(args, kwargs)
        if isinstance(module, RECURRENT) and isinstance(given, Tensor):
            records.calls.append(name)
            records.layers[name].is_plain &= is_usual(module)  # what is made of its inputs is not seen
            return
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        source, made = records.of(given), records.of(output)
        if isinstance(module, WEIGHTED):
            records.see(given, TensorLocation(name, "input"))
            records.calls.append(name)
            with operations.ignored():  # what the check computes is no part of the network
                records.layers[name].is_plain &= linear_map(module).is_exact(given, output)
            made.layer = made.branch = name
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm)):
            if getattr(module, "track_running_stats", True):
                records.norm_calls.append((source.layer, name))
            if source.layer is not None:
                made.branch = source.layer
        records.see(output, TensorLocation(name, "output"))

    return see


class _Operations(TorchFunctionMode):
    """Records what every operation that makes a tensor reads, and every sum of two tensors."""

    def __init__(self, records: TraceRecords) -> None:
        super().__init__()
        self._records = records
        self._ignoring = False

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Operations in this block are not recorded."""
        self._ignoring = True
        try:
            yield
        finally:
            self._ignoring = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._ignoring:
            return func(*args, **(kwargs or {}))
        with our_own():
            if func in ADDITIONS and len(args) > 1 and all(isinstance(x, Tensor) for x in args[:2]):
                self._records.add(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        with our_own():
            if any(True for _ in tensors_in(result)):  # not a shape, nor a device
                self._records.read((args, kwargs))
        return result
