"""How much memory a run on the CPU needs at its peak, roughly, and how many images the machine has it for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from mint_compress.graph.groups import ChannelGroup, consumer_units
from mint_compress.nn.batch_size import activations_alive, largest_output
from mint_compress.nn.io import Inputs, tensors
from mint_compress.nn.layers import channel_groups, matrix_columns
from mint_compress.nn.moments import MAX_COLUMNS
from mint_compress.nn.recurrent import reader

GIB = 2**30
BASE = 1.2 * GIB
"""Python, PyTorch, ONNX and what their exporter leaves behind; measured on Linux."""
NETWORKS = 3
"""Of its weights: the original, the pruned one, and one that is being copied, exported or gone back to."""
SCORED, FITTED = 3, 4
"""Times all second moments while scores are made of them, and those of one layer while it is refitted."""
LEAST_IMAGES = 16


def memory_need(model: nn.Module, groups: Sequence[ChannelGroup], sample: Inputs) -> Callable[[int], float]:
    """What says how many bytes a run with so many calibration images needs; without what training needs.

    Parameters
    ----------
    model
        On the CPU.
    groups
        Of which consumers are calibrated.
    sample
        One.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    each = sum(x.numel() * x.element_size() for x in tensors(sample))
    largest = largest_output(model, sample)
    moments = [
        _moments(reader(model.get_submodule(name)), units) for name, units in consumer_units(groups).items()
    ]

    def needed(images: int) -> float:
        repair = activations_alive(largest, images) + FITTED * max(moments, default=0)
        return BASE + NETWORKS * weights + images * each + max(SCORED * sum(moments), repair)

    return needed


def _moments(layer: nn.Module, units: Tensor) -> int:
    """Bytes of a layer's second moments in float64: of its columns, or of its units where it is too wide."""
    columns, groups = matrix_columns(layer), channel_groups(layer)
    if columns > MAX_COLUMNS:
        return 8 * len(units.unique()) ** 2
    return 8 * groups * columns**2


def within_memory(needed: Callable[[int], float], images: int) -> int:
    """So many images, or half of them, a quarter and so on until the machine has the memory; 16 at least."""
    while images > LEAST_IMAGES and needed(images) > machine_memory():
        images = max(LEAST_IMAGES, images // 2)
    return images


def machine_memory() -> int:
    """Bytes that the machine, or the container around this process, has in all."""
    found = []
    with suppress(ValueError, OSError, AttributeError):  # not every system counts its pages
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ValueError, OSError):  # "max", or no such file
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=2**62)
