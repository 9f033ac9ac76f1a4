"""A reference: a copy of a network in float64 in which no wrong channel map can hide, and its outputs."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mint_compress.errors import ForeignError, our_own
from mint_compress.nn.contexts import forget_computed_, training_flags
from mint_compress.nn.copying import copied
from mint_compress.nn.counting import layer_macs
from mint_compress.nn.detectors import say_raw_outputs_
from mint_compress.nn.io import run, tensors_in
from mint_compress.nn.layers import NORMS, WEIGHTED

log = logging.getLogger(__name__)

TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that counts as none."""

LEAST_CONSTANT = 0.01
"""Size of a gain that starts at zero, or near it, in a reference: it opens its branch as well as 1 does, for
a wrong map behind it moves the outputs by far more than ``TOLERANCE``; and a threshold that is raised to it
shuts little."""

NARROWING = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

WORK = 150 * 10**9
"""Multiply-accumulate operations that may be spent on telling wrong groups from right ones."""

FEWEST_TRIALS, MOST_TRIALS = 16, 512


@dataclass(frozen=True, eq=False)
class Reference:
    """A copy of a network in float64, inputs, and what it makes of them while nothing is changed.

    Attributes
    ----------
    model, inputs
        From :func:`reference_copy`, the inputs perhaps smaller.
    outputs
        The tensors in what the model gives.
    in_training
        Whether it is also run as in training, so that layers that only training uses are seen.
    trials
        How often it may be run to tell wrong groups from right ones: ``WORK`` divided by its MACs.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    outputs: list[torch.Tensor]
    in_training: bool = False
    trials: int = MOST_TRIALS

    def run(self) -> list[torch.Tensor]:
        """What the network gives as it is now; a ForeignError where its forward pass fails."""
        return _outputs(self.model, self.inputs, in_training=self.in_training)


def reference_copy(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy in which no layer hides a wrong map behind zeros or frozen weights, with its inputs.

    Float64 tells the rounding of a right map from the error of a wrong one. Norms get random gains
    and biases, weights that are zero random values. Other parameters that are constant, as many are before
    training, vary around their value: what it is may matter, as that of a threshold does. Detectors give
    what their heads say.

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
    copy = copied(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in copy.modules():
        if isinstance(module, NORMS):
            _vary_norm_(module, generator)
        else:
            _vary_constants_(module, generator)
    for parameter in copy.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    say_raw_outputs_(copy)
    _run_in_double_(copy)
    return copy, tuple(_to_double(x) for x in inputs)


def _vary_norm_(norm: nn.Module, generator: torch.Generator) -> None:
    for name, low, high in (("weight", 0.6, 1.4), ("bias", -0.2, 0.2)):
        tensor = getattr(norm, name, None)
        if isinstance(tensor, torch.Tensor):
            tensor.data.uniform_(low, high, generator=generator)


def _vary_constants_(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, WEIGHTED) and not bool(module.weight.any()):
        module.weight.data.normal_(0, 0.02, generator=generator)
    usual = ("weight", "bias") if isinstance(module, WEIGHTED) else ()
    for name, parameter in module.named_parameters(recurse=False):
        if name not in usual and _is_constant(parameter):
            _vary_constant_(parameter.data, generator)


def _vary_constant_(values: torch.Tensor, generator: torch.Generator) -> None:
    """Tell elements apart and open what a zero shuts, keeping the sign and, if it is not tiny, the size."""
    value = float(values.flatten()[0])
    if values.numel() > 1 or abs(value) < LEAST_CONSTANT:
        size = math.copysign(max(abs(value), LEAST_CONSTANT), value)
        values.uniform_(0.8, 1.2, generator=generator).mul_(size)


class _InDouble(TorchFunctionMode):
    """A forward that asks for single or half precision (``x.float()``) gets double."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with our_own():
            func = torch.Tensor.double if func in NARROWING else func
            args = tuple(_widened(a) for a in args)
            kwargs = {k: _widened(v) for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)  # the network's call


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if narrow else value


def _run_in_double_(model: nn.Module) -> None:
    forward = model.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of tensors that the forward pass makes itself
        try:
            with _InDouble():
                return forward(*args, **kwargs)
        finally:
            torch.set_default_dtype(usual)

    model.forward = wrapped


def _to_double(x: Any) -> Any:
    return x.detach().cpu().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _is_constant(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x == x.flatten()[0]).all())


def _varied(x: Any) -> Any:
    """Noise in the place of a constant image, on which many channels would look alike."""
    if isinstance(x, torch.Tensor) and _is_constant(x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return x


def _small_inputs(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> tuple[Any, ...]:
    """The smallest inputs that tell channels apart: the maps do not depend on the image size.

    Parameters
    ----------
    model, inputs
        From :func:`reference_copy`.
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
        except ForeignError:  # whatever a user's forward raises on an image that small
            continue
        return (small,)
    return inputs


def reference_run(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> Reference:
    """Run the network on inputs that tell channels apart, the smallest that will do.

    Parameters
    ----------
    model, inputs
        From :func:`reference_copy`; BatchNorm statistics are set to those of the inputs.
    in_training
        Whether to run it as in training, too. The statistics then stay those of an earlier reference of
        the same copy, whose outputs would not hold any more with others.

    Raises
    ------
    ForeignError
        The network's forward pass fails, also on the inputs as they were given.
    """
    inputs = _small_inputs(model, inputs, in_training=in_training)
    if not in_training:
        _set_statistics_(model, inputs)
    outputs = _outputs(model, inputs, in_training=in_training)
    macs = sum(layer_macs(model, inputs).values())
    trials = max(FEWEST_TRIALS, min(MOST_TRIALS, WORK // max(macs, 1)))
    return Reference(model, inputs, outputs, in_training, trials)


def _set_statistics_(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Set BatchNorm to what these inputs show: with untrained statistics signals may fade to nothing."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        _outputs(model, inputs)
    except ForeignError as error:
        if not _is_single_value(error.__cause__):
            raise
        log.debug("one value per channel: the statistics are left as they were")
    finally:
        for norm in norms:
            norm.eval()


def _is_single_value(error: BaseException | None) -> bool:
    """Whether it is what BatchNorm raises in training when a channel has one value and no variance."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def _outputs(model: nn.Module, inputs: tuple[Any, ...], *, in_training: bool = False) -> list[torch.Tensor]:
    forget_computed_(model)
    with torch.no_grad():
        outputs = [t.clone() for t in tensors_in(run(model, inputs))]
        if in_training:
            with training_flags(model):
                outputs += [t.clone() for t in tensors_in(run(model, inputs))]
    return outputs


def change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Largest difference of each output, as a share of its largest magnitude before.

    Infinite where their number or shapes differ, where values that are not finite do, and where none is
    finite.
    """
    if len(before) != len(after):
        return float("inf")
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
