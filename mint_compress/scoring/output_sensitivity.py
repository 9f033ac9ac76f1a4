"""How much a network's outputs change with each channel that a layer gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mint_compress.errors import first_line
from mint_compress.nn.contexts import evaluating, hooked, requiring_gradients
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import count, of_batch, run, split, tensors_in, to

log = logging.getLogger(__name__)

IMAGES = 64
"""How many images are looked at; a mean over their pixels needs no more."""
AT_ONCE = 8
"""Images in one backward pass, which keeps all activations."""


def output_sensitivity(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any], *, seed: int = 0
) -> dict[str, Tensor]:
    """Mean squared derivative of the network's outputs with respect to each output channel of the layers.

    That is the diagonal of the Gauss-Newton matrix, the Fisher information of outputs that are observed
    with unit noise (Martens, "New insights and perspectives on the natural gradient method", JMLR 2020,
    section 9). It is estimated from one backward pass an image, of the outputs times random signs.

    Parameters
    ----------
    model
        Run in eval mode, and left as it was.
    layers
        Convolutions and linear layers of the model by name.
    batches
        Inputs as for :func:`calibrate`; labels are not looked at.
    seed
        Draws the signs.

    Returns
    -------
    dict of Tensor
        Layer -> ``(C_out,)`` float64, the mean over images and places, summed over a layer's calls. A
        layer that no derivative reaches, where the forward pass detaches or leaves PyTorch, is not in it;
        no layer is where the backward pass fails.
    """
    try:
        return _sensitivity(model, layers, batches, torch.Generator().manual_seed(seed))
    except RuntimeError as error:  # an operation without a derivative, or too little memory for one
        log.warning("Outputs are scored alike, since the backward pass fails: %s", first_line(error))
        return {}


def _sensitivity(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Any], generator: torch.Generator
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    edges: dict[str, list[GradientEdge]] = {}

    def remember(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # the edge, not the tensor: an activation may work in place
            if output.requires_grad:
                edges.setdefault(name, []).append(get_gradient_edge(output))

        return hook

    seen = 0
    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    with hooked(hooks), evaluating(model), requiring_gradients(model), torch.enable_grad():
        for batch in batches:
            for few, _ in split(to(of_batch(batch), device_of(model)), AT_ONCE):
                edges.clear()
                projection = _projected(run(model, few), generator)
                if projection is None or not edges:
                    return {}
                calls = [(name, edge) for name, own in edges.items() for edge in own]
                found = torch.autograd.grad(projection, [edge for _, edge in calls], allow_unused=True)
                for (name, _), slope in zip(calls, found, strict=True):
                    if slope is not None:
                        squares = _per_channel(layers[name], slope.double().square())
                        total[name] = total.get(name, 0.0) + squares
                seen += count(few)
                if seen >= IMAGES:
                    break
            if seen >= IMAGES:
                break
    return {name: sums / seen for name, sums in total.items() if bool(sums.isfinite().all())}


def _projected(outputs: Any, generator: torch.Generator) -> Tensor | None:
    """The sum of all outputs with random signs; None where they have no derivative."""
    parts = [
        (out * (2 * torch.randint(2, out.shape, generator=generator) - 1).to(out)).sum()
        for out in tensors_in(outputs)
        if out.requires_grad
    ]
    return torch.stack(parts).sum() if parts else None


def _per_channel(layer: nn.Module, squares: Tensor) -> Tensor:
    """``(C_out,)``: summed over the batch, the mean over places."""
    if isinstance(layer, nn.Linear):
        return squares.reshape(squares.shape[0], -1, squares.shape[-1]).mean(1).sum(0)
    return squares.flatten(2).mean(2).sum(0)
