"""How far outputs are apart; nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mint_compress.exporting.session import Array


class Differences:
    """The largest of each output over all batches.

    Attributes
    ----------
    gaps, magnitudes
        Of each output: the largest difference, and the largest magnitude of what was expected.
    """

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.magnitudes: list[float] = []

    def add(self, expected: Sequence[Array], got: Sequence[Array]) -> None:
        """Take in a batch; shapes are alike."""
        gaps = [_largest(want.astype(np.float64) - have) for want, have in zip(expected, got, strict=True)]
        magnitudes = [_largest(want) for want in expected]
        self.gaps = _maxima(self.gaps, gaps)
        self.magnitudes = _maxima(self.magnitudes, magnitudes)

    @property
    def absolute(self) -> float:
        """The largest difference of any output element; NaN where there is one."""
        return float(np.max(self.gaps))

    @property
    def relative(self) -> float:
        """The same as a share of the largest magnitude of that output."""
        gaps = np.array(self.gaps)
        with np.errstate(divide="ignore"):
            shares = np.divide(gaps, self.magnitudes, out=np.zeros_like(gaps), where=gaps != 0)
        return float(np.max(shares))


def _largest(values: Array) -> float:
    """Largest magnitude; NaN where there is one."""
    return float(np.abs(values).max(initial=0.0))


def _maxima(ones: list[float], others: list[float]) -> list[float]:
    return [float(x) for x in np.maximum(ones, others)] if ones else others
