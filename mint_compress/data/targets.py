"""Targets of a batch, whatever they are: a tensor, or dicts, lists and tuples of such; None without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Targets = Any
"""None, a tensor (n, ...), a mapping of such, or a list with one target a sample, as detection has dicts."""


def targets_to(targets: Targets, device: torch.device | str) -> Targets:
    """On ``device``; what is no tensor stays as it is."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    if isinstance(targets, Mapping):
        return {name: targets_to(value, device) for name, value in targets.items()}
    if isinstance(targets, list | tuple):
        return [targets_to(value, device) for value in targets]
    return targets


def select_targets(targets: Targets, rows: Tensor | slice) -> Targets:
    """Those of some samples of the batch, by their numbers or as a slice."""
    if isinstance(targets, Tensor):
        return targets[rows]
    if isinstance(targets, Mapping):
        return {name: select_targets(value, rows) for name, value in targets.items()}
    if isinstance(targets, list | tuple):
        return targets[rows] if isinstance(rows, slice) else [targets[i] for i in rows.tolist()]
    return targets


def shapes_of(targets: Targets) -> str:
    """For a message: ``(32, 4) of float32``, ``a list of 32 dicts (boxes, labels)``, ``nothing``."""
    if targets is None:
        return "nothing"
    if isinstance(targets, Tensor):
        return f"{tuple(targets.shape)} of {str(targets.dtype).removeprefix('torch.')}"
    if isinstance(targets, Mapping):
        return f"a dict ({', '.join(map(str, targets))})"
    if isinstance(targets, list | tuple):
        first = targets[0] if targets else None
        kind = f"dicts ({', '.join(map(str, first))})" if isinstance(first, Mapping) else type(first).__name__
        return f"a list of {len(targets)} {kind}"
    return f"a {type(targets).__name__}"


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """Those of several batches as those of one; they must be of one kind."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {name: concatenate_targets([part[name] for part in parts]) for name in first}
    return None if first is None else [one for part in parts for one in part]
