"""Estimators of mutual information: arrays in, nats out; no network in here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol, cast

from mint_compress.errors import MintError
from mint_compress.progress import Progress

if TYPE_CHECKING:  # what takes what is asked before torch is there
    from torch import Tensor

Input = Literal["moments", "samples"]
"""What a run scores from: second moments of a layer's inputs, or sampled spatial means of both its sides."""

TAKES: Mapping[str, Input] = {"gaussian": "moments", "gmi": "samples", "mint": "samples", "knn": "samples"}
"""What each built-in estimator is given in a run; those of other packages are given samples."""

BUILT_IN = tuple(TAKES)
"""Each is, on samples, the function of that name in the module of that name."""

ENTRY_POINTS = "mint_compress.estimators"


def uses_samples(estimator: str) -> bool:
    """Whether a run gives an estimator of that name samples, and not moments."""
    return TAKES.get(estimator, "samples") == "samples"


def added() -> tuple[str, ...]:
    """Names of the estimators of installed packages, after a walk over all of them."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(BUILT_IN)))


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
        names = ", ".join([*BUILT_IN, *added()])
        raise MintError(f"Unknown estimator {name!r}. Choose from: {names}.")
    try:
        return cast(Estimator, found[name].load())
    except Exception as error:  # whatever the other package raises on import
        reason = " ".join(str(error).split())
        raise MintError(
            f"Estimator {name!r} ({found[name].value}) cannot be loaded: {type(error).__name__}: {reason}. "
            "Repair or uninstall the package that offers it."
        ) from error
