"""Where in a network a tensor is seen: at the input or the output of a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mint_compress.nn.contexts import first_given


@dataclass(frozen=True)
class TensorLocation:
    """What flows into (``input``) or out of (``output``) a module.

    Attributes
    ----------
    module
        Qualified name.
    side
        Of the inputs, the first is meant.
    """

    module: str
    side: Literal["input", "output"]

    def pick(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """The tensor, of what a forward hook of the module is called with."""
        return first_given(args, kwargs) if self.side == "input" else output
