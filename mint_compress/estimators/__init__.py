"""Estimators of mutual information: arrays in, nats out; no network in here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from torch import Tensor

from mint_compress.errors import MintError

Estimator = Callable[..., Tensor]
"""``estimate(children (n, C), parents (n, d), *, parent_groups (d,), seed) -> (C, P)``."""


def find_estimator(name: str) -> Estimator:
    """Look an estimator of sampled activations up by name."""
    raise MintError(name)
