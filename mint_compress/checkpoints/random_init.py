"""Networks built without the random numbers of their first weights, which a file replaces at once."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

RANDOM = frozenset(
    f"{kind}_"
    for kind in (
        *("uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal", "kaiming_uniform"),
        *("kaiming_normal", "orthogonal", "sparse", "erfinv"),
    )
)


class WithoutRandomInit(TorchFunctionMode):
    """Fills parameters with a constant where a constructor would draw random numbers.

    For networks whose every parameter is replaced afterwards; 138 M random numbers take seconds. The
    constant is the mean: initialisers that draw until nothing lies outside an interval end at once, as
    they would not with what happens to be in memory. What is no parameter is drawn, lest such a
    loop's own proposals never be accepted.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor as it is, or call ``func``."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in RANDOM:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        if tensor.is_meta:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return func(*args, **kwargs)
        mean = (args[1] if len(args) > 1 else kwargs.get("mean", 0.0)) if name == "normal_" else 0.0
        tensor.detach().fill_(mean)
        return tensor
