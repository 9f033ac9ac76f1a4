"""What processes that train one network together make alike after each has seen its own samples."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mint_compress import processes


def average_gradients_(parameters: Iterable[Tensor], samples: int) -> Tensor | float:
    """Give every parameter the mean of its gradients over all samples of all processes.

    By one sum, after the backward passes: PyTorch's DistributedDataParallel would send gradients while others
    are computed, but asks for one backward pass a step and, in it, for a gradient of every parameter.

    Parameters
    ----------
    parameters
        In the same order everywhere. One without a gradient here may have one elsewhere.
    samples
        How many this process has seen, whose mean its gradients are; 0, if it has none.

    Returns
    -------
    Tensor or float
        The share of all samples that this process has seen.
    """
    if processes.world() == 1:
        return 1.0
    parameters = list(parameters)
    there = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad * samples).flatten() for p in parameters]
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    number = torch.tensor([samples], device=parts[0].device)
    flat = processes.sum_(torch.cat([part.to(dtype) for part in (*parts, there, number)]))
    total = flat[-1].clamp_min(1)
    sums = flat[: -1 - len(parameters)].split([p.numel() for p in parameters])
    for parameter, found, has in zip(parameters, sums, flat[-1 - len(parameters) : -1].tolist(), strict=True):
        parameter.grad = (found / total).view_as(parameter).to(parameter) if has else None
    return samples / total


def average_statistics_(model: nn.Module) -> None:
    """Give running statistics the mean over the processes, each of which has normalised its own samples."""
    if processes.world() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(processes.sum_(buffer.clone()) / processes.world())
