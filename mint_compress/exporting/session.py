"""An exported model opened in its runtime; nothing here needs PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class InputSpec(NamedTuple):
    """An input of an exported model; ``None`` in the shape is a dimension that may vary."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Session(Protocol):
    """An exported model, opened in its runtime."""

    @property
    def provider(self) -> str:
        """The backend that really runs the model, in the runtime's own words."""

    @property
    def inputs(self) -> list[InputSpec]:
        """What ``run`` takes, in order; dtypes are NumPy names."""

    def run(self, inputs: tuple[Array, ...]) -> list[Array]:
        """Outputs for one batch, in the order in which the module returned them."""
