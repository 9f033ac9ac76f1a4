"""Every matrix product and convolution of a pass, and the module or the layer's weight it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle

from mint_compress.errors import our_own
from mint_compress.nn.contexts import hooked
from mint_compress.nn.devices import device_of
from mint_compress.nn.layers import WEIGHTED
from mint_compress.nn.recurrent import RECURRENT


class Place(Enum):
    """Where a product happens."""

    LAYER = "inside of a convolution, linear or recurrent layer"
    WEIGHT = "outside of the layers, with the weight of one"
    MODULE = "in any other module"


@dataclass(frozen=True)
class MatrixProduct:
    """One operation that multiplies matrices.

    Attributes
    ----------
    place, name
        Where it happens: the qualified name of that layer, or of the innermost module called.
    macs
        Multiply-accumulate operations of the whole batch: one number, or for attention two, of the queries
        with the keys and of the weights with the values.
    operation, args
        The ATen operation by name, and what it was given.
    """

    place: Place
    name: str
    macs: tuple[int, ...]
    operation: str
    args: tuple[Any, ...]

    def of_sample(self, batch: int) -> int:
        """MACs of one of so many samples."""
        return sum(macs // batch for macs in self.macs)


@contextmanager
def watching_products(module: nn.Module, seen: Callable[[MatrixProduct], None]) -> Iterator[None]:
    """Call ``seen`` at every matrix product and convolution that passes over ``module`` make.

    Those are the operations for which PyTorch has a formula (``torch.utils.flop_counter``), and attention
    on the CPU, for which it has none. The fast path of ``nn.MultiheadAttention``, which computes all of a
    block at once, is switched off.
    """
    calls = _Calls(module)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(hooked(calls.hooks()))
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        if device_of(module).type != "cpu":
            # flash attention pads heads to multiples of 8 channels, which would be counted
            stack.enter_context(sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))
        stack.enter_context(_Operations(calls, seen))
        yield


class _Calls:
    """The modules that are being computed, and the weights of the layers."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = dict(module.named_modules())
        self._running: list[tuple[str, bool]] = []
        self._weights: dict[tuple[int, int], str] = {}
        for name, layer in self._modules.items():
            weight = getattr(layer, "weight", None) if isinstance(layer, WEIGHTED) else None
            if isinstance(weight, Tensor) and weight.numel():
                self._weights.setdefault((weight.data_ptr(), weight.numel()), name)

    def hooks(self) -> list[RemovableHandle]:
        """What follows the calls; all of it has to be removed."""
        handles = []
        for name, module in self._modules.items():
            entry = name, isinstance(module, (*WEIGHTED, *RECURRENT))

            def enter(module: nn.Module, args: Any, entry: tuple[str, bool] = entry) -> None:
                self._running.append(entry)

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def place(self, args: Any) -> tuple[Place, str]:
        """Where an operation with these arguments happens now."""
        layer = next((name for name, is_layer in reversed(self._running) if is_layer), None)
        if layer is not None:
            return Place.LAYER, layer
        for tensor in tree_iter(args):
            if isinstance(tensor, Tensor):
                owner = self._weights.get((tensor.data_ptr(), tensor.numel()))
                if owner is not None:
                    return Place.WEIGHT, owner
        return Place.MODULE, self._running[-1][0] if self._running else ""


class _Operations(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, calls: _Calls, seen: Callable[[MatrixProduct], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # not at the top: it imports Triton, which takes a second
        from torch.utils.flop_counter import flop_registry

        self._calls, self._seen = calls, seen
        self._formulas: Mapping[Any, Callable[..., int]] = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        counted = packet in self._formulas or _is_attention(packet)
        if not counted and torch.is_inference_mode_enabled() and hasattr(func, "decompose"):
            with self:  # in inference mode, composite operations arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if counted:
            with our_own():
                macs: tuple[int, ...] = _of_attention(*args[:3]) if _is_attention(packet) else ()
                macs = macs or (self._formulas[packet](*args, **kwargs, out_val=output) // 2,)
                self._seen(MatrixProduct(*self._calls.place(args), macs, packet.__name__, args))
        return output


def _is_attention(packet: Any) -> bool:
    name = getattr(packet, "__name__", "")
    return name.startswith("_scaled_dot_product") and not name.endswith("_backward")


def _of_attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[int, int]:
    """Queries with keys, and the weights that come of it with values; masks make no difference."""
    pairs = math.prod(queries.shape[:-1]) * keys.shape[-2]
    return pairs * queries.shape[-1], pairs * values.shape[-1]
