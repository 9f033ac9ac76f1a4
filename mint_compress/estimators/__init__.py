"""Estimators of mutual information: arrays in, nats out; no network in here."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, cast

from torch import Tensor

from mint_compress.errors import MintError
from mint_compress.progress import Progress

BUILT_IN = ("gaussian", "gmi", "mint", "knn")
"""Each is the function of that name in the module of that name."""

ENTRY_POINTS = "mint_compress.estimators"


class Estimator(Protocol):
    """What an entry point of ``mint_compress.estimators`` has to be: a callable of this shape.

    ``children`` is ``(n, C)`` and ``parents`` ``(n, d)``, row by row from the same image.
    ``child_groups`` ``(C,)`` and ``parent_groups`` ``(d,)`` are integer labels, 0..Q-1 and 0..P-1,
    one per column; None makes every column a group of its own. The answer is ``(Q, P)``: what
    parent group p says about child group q, all other parents being given.
    """

    def __call__(
        self,
        children: Tensor,
        parents: Tensor,
        *,
        child_groups: Tensor | None = None,
        parent_groups: Tensor | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Tensor: ...


def find_estimator(name: str) -> Estimator:
    """Look up an estimator of sampled activations.

    Parameters
    ----------
    name
        One of :data:`BUILT_IN`, or the name of an entry point of ``mint_compress.estimators``.

    Raises
    ------
    MintError
        There is no such estimator, or the package that offers it cannot be imported.
    """
    if name in BUILT_IN:
        return cast(Estimator, getattr(import_module(f"{__name__}.{name}"), name))
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        names = ", ".join([*BUILT_IN, *sorted(set(found) - set(BUILT_IN))])
        raise MintError(f"Unknown estimator {name!r}. Choose from: {names}.")
    try:
        return cast(Estimator, found[name].load())
    except Exception as error:  # whatever the other package raises on import
        reason = " ".join(str(error).split())
        raise MintError(
            f"Estimator {name!r} ({found[name].value}) cannot be loaded: {type(error).__name__}: {reason}. "
            "Repair or uninstall the package that offers it."
        ) from error
