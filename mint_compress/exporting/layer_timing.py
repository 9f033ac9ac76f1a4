"""How long single layers take in a runtime, at a few widths: each is exported and timed alone."""

from __future__ import annotations

import math
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mint_compress.exporting.kept_times import KeptTimes
from mint_compress.exporting.protocol import Exporter
from mint_compress.exporting.timing import no_garbage_collection, time_in_turn
from mint_compress.nn.counting import each_call
from mint_compress.nn.io import Inputs
from mint_compress.nn.layers import CONVOLUTIONS, WEIGHTED, in_channels, is_depthwise, out_channels
from mint_compress.planning.latency import LayerTimes, layer_times
from mint_compress.progress import Progress
from mint_compress.settings import Benchmark

FRACTIONS = (1 / 8, 1 / 2, 1)
"""Of a layer's channels on each side, the widths at which it is timed."""
STEP = 8
"""Widths are multiples of this, as far as a layer is wider: the width of a vector, which runtimes like."""
SECONDS = 0.03
"""That one layer of one width is timed for, at least; three runs whatever they take."""
SIZES = ("kernel_size", "stride", "padding", "dilation", "output_padding")


class Call(NamedTuple):
    """One layer as it is called."""

    layer: nn.Module
    shape: tuple[int, ...]
    """Of what it is given."""


def time_layers(
    model: nn.Module,
    example_inputs: Inputs,
    exporter: Exporter,
    how: Benchmark,
    *,
    progress: Progress | None = None,
) -> dict[str, LayerTimes]:
    """Time every convolution and linear layer of a network at a few widths.

    What was timed before, on this machine, in this runtime, is taken from a file in the user's cache.

    Parameters
    ----------
    model
        On any device and in any mode.
    example_inputs
        A batch as large as the one that counts.
    exporter
        Of the format that will be used.
    how
        Provider and threads.
    progress
        Called as ("time layers", layers done, layers).

    Returns
    -------
    dict
        Layer -> its times; those of all its calls added up where it is called more than once.
    """
    calls = each_call(model, example_inputs, lambda layer, given, _: Call(layer, tuple(given.shape)))
    kept = KeptTimes.of(exporter, how)
    found: dict[str, LayerTimes] = {}
    with no_garbage_collection():  # looking for it takes longer than timing a layer
        for done, (name, each) in enumerate(calls.items()):
            if progress:
                progress("time layers", done, len(calls))
            found[name] = _summed([_times(call, exporter, how, kept) for call in each])
    kept.write()
    if progress:
        progress("time layers", len(calls), len(calls))
    return found


def _summed(each: list[LayerTimes]) -> LayerTimes:
    first = each[0]
    return layer_times(first.inputs, first.outputs, np.sum([one.ms for one in each], axis=0))


def _times(call: Call, exporter: Exporter, how: Benchmark, kept: KeptTimes) -> LayerTimes:
    """One layer at a few widths."""
    layer, (inputs, outputs) = call.layer, _widths(call.layer)
    key = _key(call)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layer{exporter.suffixes[0]}"

        def measured(width: tuple[int, int]) -> float:
            narrow, shape = _narrowed(layer, width), _given(call, width)
            _write(exporter, narrow, shape, path)
            session = exporter.open(path, device=how.provider, threads=how.threads)
            given = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            [taken] = time_in_turn([session], (given,), seconds=SECONDS, warmup=2)
            return taken.median

        ms = [kept.once(f"{key} {i}x{o}", measured, (i, o)) for i, o in product(inputs, outputs)]
    return layer_times(inputs, outputs, np.array(ms).reshape(len(inputs), len(outputs)))


def _widths(layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels on each side at which it is timed; of a depthwise one, those of both at once."""
    groups = 1 if is_depthwise(layer) else int(getattr(layer, "groups", 1))
    outputs = _steps(out_channels(layer), groups)
    return ((0,) if is_depthwise(layer) else _steps(in_channels(layer), groups)), outputs


def _steps(channels: int, groups: int) -> tuple[int, ...]:
    step = math.lcm(STEP, groups)
    widths = {max(1, round(channels * share / step)) * step for share in FRACTIONS}
    return tuple(sorted({width for width in widths if width < channels} | {channels}))


def _narrowed(layer: Any, width: tuple[int, int]) -> nn.Module:
    """A layer of its kind with so many (inputs, outputs), its weights drawn anew."""
    inputs, outputs = width
    biased = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=biased)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))  # not a package's own subclass
    groups = outputs if is_depthwise(layer) else layer.groups
    sizes = {name: getattr(layer, name) for name in SIZES if name != "output_padding" or layer.transposed}
    return kind(inputs or outputs, outputs, groups=groups, bias=biased, **sizes)


def _given(call: Call, width: tuple[int, int]) -> tuple[int, ...]:
    """The shape of what the narrower layer is given."""
    inputs, outputs = width
    dim = len(call.shape) - 1 if isinstance(call.layer, nn.Linear) else 1
    return (*call.shape[:dim], inputs or outputs, *call.shape[dim + 1 :])


def _key(call: Call) -> str:
    """What the time of a layer depends on, but for its widths."""
    layer: Any = call.layer
    sizes = [f"{name}={getattr(layer, name)}" for name in (*SIZES, "groups") if hasattr(layer, name)]
    if is_depthwise(layer):
        sizes[-1] = "depthwise"
    kind = next(kind for kind in WEIGHTED if isinstance(layer, kind)).__name__
    dim = len(call.shape) - 1 if isinstance(layer, nn.Linear) else 1
    places = (*call.shape[:dim], "C", *call.shape[dim + 1 :])
    bias = "" if layer.bias is None else " bias"
    return f"{kind} {','.join(map(str, places))} {' '.join(sizes)}{bias}"


def _write(exporter: Exporter, layer: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """By the exporter's own short way, if it has one for such a layer."""
    short: Any = getattr(exporter, "write_layer", None)
    if short is None or not short(layer, shape, path):
        exporter.export(layer.eval(), torch.zeros(shape), path)
