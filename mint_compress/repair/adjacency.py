"""What one traced pass tells about the neighbours of each layer: its BatchNorm, and what is added to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mint_compress.nn.counting import shared_parameters
from mint_compress.repair.tensor_location import TensorLocation
from mint_compress.repair.trace_records import Addition, Sighting, TraceRecords, record_pass


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
        Layer -> where the tensor was seen that is added to its output, behind its BatchNorm if it has
        one; that location has it already when the layer is called. Of layers that are called once.
    simple
        Layers that share no parameter and are plain linear maps at every call.
    """

    calls: tuple[str, ...] = ()
    norms: dict[str, str] = field(default_factory=dict)
    shortcuts: dict[str, TensorLocation] = field(default_factory=dict)
    simple: frozenset[str] = frozenset()


def trace(model: nn.Module, batch: Any) -> Topology:
    """Run a network once and tell the neighbours of its layers.

    Parameters
    ----------
    model
        Run in eval mode and without gradients, and left as it was.
    batch
        Inputs as for :func:`calibrate`; one sample is enough.

    Returns
    -------
    Topology
    """
    records = record_pass(model, batch)
    plain = {name for name, layer in records.layers.items() if layer.is_plain}
    simple = frozenset(plain - shared_parameters(model).keys())
    return Topology(tuple(records.calls), _norms(records), _shortcuts(records), simple)


def _norms(records: TraceRecords) -> dict[str, str]:
    """Layers whose output, at every call, this norm alone reads, where the norm reads nothing else."""
    times, norm_times = Counter(records.calls), Counter(norm for _, norm in records.norm_calls)
    return {
        layer: norm
        for (layer, norm), count in Counter(records.norm_calls).items()
        if layer is not None and count == times[layer] == records.layers[layer].reads == norm_times[norm]
    }


def _shortcuts(records: TraceRecords) -> dict[str, TensorLocation]:
    """The location of what is added to each layer that is called once; of several, the last."""
    times = Counter(records.calls)
    found = [(a.layer, _shortcut(records, a)) for a in records.additions if times[a.layer] == 1]
    return {layer: location for layer, location in found if location is not None}


def _shortcut(records: TraceRecords, addition: Addition) -> TensorLocation | None:
    """Where the other summand was seen first, if that still shows it when the layer is called."""
    first = next((s for s in records.sightings if s.record is addition.other), None)
    call = records.calls.index(addition.layer)
    if first is None or first.calls > call or first.location.module == addition.layer:
        return None
    # a module that is called again and again shows its latest tensor only
    return first.location if _latest(records, first, call).record is addition.other else None


def _latest(records: TraceRecords, first: Sighting, call: int) -> Sighting:
    """What was seen last at the same location, before that call of a layer."""
    return [s for s in records.sightings if s.location == first.location and s.calls <= call][-1]
