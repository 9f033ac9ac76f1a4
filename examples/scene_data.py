"""Scenes as ``--data`` takes them: ``scene_data:maps`` with label maps, ``scene_data:boxes`` with boxes.

A function that ``--data`` names is called without arguments, and returns the loaders. There are few scenes,
so that a first try takes a minute.
"""

from __future__ import annotations

from typing import Any

import torch
from scenes import splits
from torch.utils.data import DataLoader

SIZES = (256, 64, 64)


def maps() -> dict[str, Any]:
    """Images (n, 3, 64, 64), and label maps (n, 64, 64)."""
    return _loaders(boxes=False)


def boxes() -> dict[str, Any]:
    """Images (n, 3, 64, 64), and a dict of boxes and labels for each."""
    return _loaders(boxes=True)


def _loaders(boxes: bool) -> dict[str, Any]:
    made = splits(None, None, SIZES, boxes=boxes)
    together = _collated if boxes else None
    return {
        name: DataLoader(scenes, batch_size=32, shuffle=name == "train", collate_fn=together)
        for name, scenes in zip(("train", "val", "test"), made, strict=True)
    }


def _collated(samples: list[Any]) -> Any:
    """Every image has its own number of boxes, so their dicts stay a list."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)
