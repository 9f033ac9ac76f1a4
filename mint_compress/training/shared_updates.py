"""What processes that train one network together make alike after each has seen its own samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mint_compress import processes


def average_gradients_(parameters: Iterable[Tensor], weight: float = 1.0) -> None:
    """Give every parameter the weighted mean of its gradients over all processes.

    By one sum, after the backward passes: PyTorch's DistributedDataParallel would send gradients while others
    are computed, but asks for one backward pass a step and, in it, for a gradient of every parameter.

    Parameters
    ----------
    parameters
        In the same order everywhere. One without a gradient here may have one elsewhere.
    weight
        Of this process's gradients, such as the number of samples that they are the mean of; 0 for none.
    """
    if processes.world() == 1:
        return
    parameters = list(parameters)
    there = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad * weight).flatten() for p in parameters]
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    own = torch.tensor([float(weight)], device=parts[0].device)
    flat = processes.sum_(torch.cat([part.to(dtype) for part in (*parts, there, own)]))
    sums = flat[: -1 - len(parameters)].split([p.numel() for p in parameters])
    for parameter, found, has in zip(parameters, sums, flat[-1 - len(parameters) : -1].tolist(), strict=True):
        parameter.grad = (found / flat[-1]).view_as(parameter).to(parameter) if has else None


@contextmanager
def shared_normalisation(model: nn.Module) -> Iterator[None]:
    """While the block lasts, batch normalisation goes by what all processes have of a batch.

    As PyTorch's SyncBatchNorm does, which takes GPUs only.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)] if processes.world() > 1 else []
    for layer in layers:
        vars(layer)["forward"] = partial(_normalised, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _normalised(layer: _BatchNorm, given: Tensor) -> Tensor:
    if not layer.training:
        evaluated: Tensor = type(layer).forward(layer, given)
        return evaluated
    x = given.to(torch.promote_types(given.dtype, torch.float32))
    places, shape = [0, *range(2, x.ndim)], (1, -1, *(1,) * (x.ndim - 2))
    number = processes.sum_(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean = _total(x.sum(places)) / number
    centred = x - mean.view(shape)
    variance = _total(centred.square().sum(places)) / number
    if layer.running_mean is not None and layer.running_var is not None:
        with torch.no_grad():
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.add_(1)
            momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
            unbiased = variance * number / (number - 1).clamp_min(1)
            layer.running_var.lerp_(unbiased.to(layer.running_var), momentum)
    made = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        made = made * layer.weight.view(shape) + layer.bias.view(shape)
    return made.to(given.dtype)


class _Total(torch.autograd.Function):
    """The sum over all processes, through which the gradients of all come back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return processes.sum_(own.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return processes.sum_(gradients[0].clone())


def _total(own: Tensor) -> Tensor:
    total: Tensor = _Total.apply(own)  # type: ignore[no-untyped-call]
    return total


def average_statistics_(model: nn.Module) -> None:
    """Give buffers the mean over the processes: statistics that a layer has gathered of their own samples."""
    if processes.world() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(processes.sum_(buffer.clone()) / processes.world())
