"""Second moments of what a layer multiplies with its weights, and what accumulates them call by call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments of what a consumer layer multiplies with its weights.

    Attributes
    ----------
    form
        ``patches``: columns are (channel, kernel position) of the input patches, and the layer is
        exactly ``rows @ weight``. ``pixels``: columns are input channels (transposed or unusual
        convolutions). ``contributions``: columns are the units' shares of the output, which sum to it
        (layers too wide for patches).
    covariance
        ``(groups, columns, columns)`` float64, centred.
    mean
        ``(groups, columns)`` float64.
    weight
        ``(groups, columns, outputs)`` float64: rows times weight is what the layer gives, bias apart.
    column_units
        ``(groups, columns)`` int64: the unit each column belongs to, -1 for what stays.
    rows
        Number of rows accumulated.
    """

    form: str
    covariance: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    column_units: Tensor = field(repr=False)
    rows: int


class MomentAccumulator(Protocol):
    """One form of a layer's second moments."""

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Take one call of the layer: its input and its output, batch first."""

    def look(self, inputs: Tensor, output: Tensor) -> int:
        """See a call without counting it; how many places it has."""

    def draw(self, places: int) -> Tensor:
        """The places of the next call that count."""

    def add_up_(self) -> None:
        """Take in the calls of all processes."""

    def result(self) -> LayerMoments:
        """The moments of all calls."""
