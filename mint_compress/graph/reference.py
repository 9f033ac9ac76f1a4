"""A float64 twin of a network, made so that no wrong channel map can hide in it, and its outputs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mint_compress.nn.contexts import training_flags
from mint_compress.nn.copying import copied
from mint_compress.nn.counting import layer_macs
from mint_compress.nn.io import tensors_in
from mint_compress.nn.layers import NORMS, WEIGHTED

log = logging.getLogger(__name__)

TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that counts as none."""

NARROWING = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

WORK = 150 * 10**9
"""Multiply-accumulate operations that may be spent on telling wrong groups from right ones."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A network in float64, inputs, and what it makes of them while nothing is changed.

    Attributes
    ----------
    in_training
        Whether it is also run as in training, so that layers that only training uses are seen.
    trials
        How often it may be run to tell wrong groups from right ones: ``WORK`` divided by its MACs.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    outputs: list[torch.Tensor]
    in_training: bool = False
    trials: int = 512

    def run(self) -> list[torch.Tensor]:
        """What the network gives as it is now."""
        return _outputs(self.model, self.inputs, in_training=self.in_training)


def float64_twin(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy in which no layer hides a wrong map behind zeros or frozen weights, with its inputs.

    Parameters
    ----------
    model
        Any network; it is not changed.
    inputs
        Its positional inputs.

    Returns
    -------
    model, inputs
        On the CPU, in float64 and eval mode; every parameter wants gradients, so that it is traced.
    """
    twin = copied(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in twin.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, NORMS):
            for tensor, low, high in ((weight, 0.6, 1.4), (bias, -0.2, 0.2)):
                if isinstance(tensor, torch.Tensor):
                    tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, WEIGHTED) and not bool(module.weight.any()):
            module.weight.data.normal_(0, 0.02, generator=generator)
        if not isinstance(module, NORMS):
            usual = ("weight", "bias") if isinstance(module, WEIGHTED) else ()
            for name, bare in module.named_parameters(recurse=False):
                # a layer scale or a gain that starts at zero shuts its branch
                if name not in usual and _is_constant(bare):
                    bare.data.uniform_(0.5, 1.5, generator=generator)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    _run_in_double_(twin)
    return twin, tuple(_to_double(x) for x in inputs)


class _InDouble(TorchFunctionMode):
    """A forward that asks for single or half precision (``x.float()``) gets double."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func in NARROWING else func
        args = tuple(_widened(a) for a in args)
        return func(*args, **{k: _widened(v) for k, v in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if narrow else value


def _run_in_double_(twin: nn.Module) -> None:
    forward = twin.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of tensors that the forward pass makes itself
        try:
            with _InDouble():
                return forward(*args, **kwargs)
        finally:
            torch.set_default_dtype(usual)

    twin.forward = wrapped


def _to_double(x: Any) -> Any:
    return x.detach().cpu().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _is_constant(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x == x.flatten()[0]).all())


def _varied(x: Any) -> Any:
    """Noise in the place of a constant image, on which many channels would look alike."""
    if isinstance(x, torch.Tensor) and _is_constant(x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return x


def small_inputs(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> tuple[Any, ...]:
    """The smallest inputs that tell channels apart: the maps do not depend on the image size.

    Parameters
    ----------
    model, inputs
        From :func:`float64_twin`.
    in_training
        Whether the network must also accept them as in training.
    """
    inputs = tuple(_varied(x) for x in inputs)
    image = inputs[0]
    if len(inputs) > 1 or not isinstance(image, torch.Tensor) or image.ndim != 4:
        return inputs
    generator = torch.Generator().manual_seed(2)
    for side in (64, 96, 128):
        if side >= min(image.shape[2:]):
            break
        small = torch.randn(1, image.shape[1], side, side, generator=generator, dtype=torch.float64)
        try:
            _outputs(model, (small,), in_training=in_training)
        except Exception:  # whatever a user's forward raises on an image that small
            continue
        return (small,)
    return inputs


def reference_run(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> Reference:
    """Run the network on inputs that tell channels apart, the smallest that will do.

    Parameters
    ----------
    model, inputs
        From :func:`float64_twin`; BatchNorm statistics are set to those of the inputs.
    in_training
        Whether to run it as in training, too.
    """
    inputs = small_inputs(model, inputs, in_training=in_training)
    _level(model, inputs)
    outputs = _outputs(model, inputs, in_training=in_training)
    macs = sum(layer_macs(model, inputs).values())
    return Reference(model, inputs, outputs, in_training, max(16, min(512, WORK // max(macs, 1))))


def _level(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set BatchNorm to what these inputs show: with untrained statistics signals may fade to nothing."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        _outputs(model, inputs)
    except ValueError:
        log.debug("one value per channel: the statistics are left as they were")
    for norm in norms:
        norm.eval()


def _outputs(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = [t.clone() for t in tensors_in(model(*inputs))]
        if in_training:
            with training_flags(model):
                outputs += [t.clone() for t in tensors_in(model(*inputs))]
    return outputs


def change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Largest relative difference; infinite where shapes differ, or what is not finite."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        if a.dtype == torch.bool:
            a, b = a.double(), b.double()
        finite = a.isfinite()
        # logits may be masked with infinities, the same ones each time
        if not (finite.any() and torch.equal(a[~finite], b[~finite]) and b[finite].isfinite().all()):
            return float("inf")
        a, b = a[finite], b[finite]
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)))
    return worst
