"""How much a network's outputs change with each channel that a layer gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mint_compress import processes
from mint_compress.errors import ForeignError, first_line, foreign, our_own
from mint_compress.nn.contexts import evaluating, hooked, requiring_gradients
from mint_compress.nn.copying import copied
from mint_compress.nn.detectors import everything_raw, is_detector
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, count, of_batch, run, split, tensors_in, to
from mint_compress.nn.layers import mean_over_places

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
        Left as it was: a copy is run, in eval mode, for what a forward pass keeps on the network would have
        a history of gradients.
    layers
        Convolutions and linear layers of the model by qualified name.
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
    signs = torch.Generator().manual_seed(seed)
    model = copied(model)
    layers = {name: model.get_submodule(name) for name in layers}
    total: dict[str, Tensor] = {}
    images, skipped, failed = 0, list[int](), False
    for number, few in enumerate(_few_at_once(batches)):
        images += count(few)
        if not processes.is_mine(number):
            skipped.append(count(few))
            continue
        try:
            slopes = _slopes(model, layers, few, signs, skipped)
        except ForeignError as error:  # an operation without a derivative, or too little memory for one
            said = first_line(error)
            log.warning("Outputs are scored alike, since the backward pass fails: %s", said)
            slopes = None
        if slopes is None:
            failed = True
            break
        skipped = []
        for name, slope in slopes:
            squares = mean_over_places(layers[name], slope.double().square())
            total[name] = total.get(name, 0.0) + squares.sum(0)
    if any(processes.gathered(failed)):
        return {}
    total = processes.summed(total)
    return {name: sums / images for name, sums in total.items() if bool(sums.isfinite().all())}


def _few_at_once(batches: Sequence[Any]) -> Iterator[Inputs]:
    """The first images, in parts that go through one backward pass each."""
    seen = 0
    for batch in batches:
        for few, _ in split(of_batch(batch), AT_ONCE):
            if seen >= IMAGES:
                return
            yield few
            seen += count(few)


def _slopes(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    inputs: Inputs,
    signs: torch.Generator,
    skipped: Sequence[int],
) -> list[tuple[str, Tensor]] | None:
    """Each layer's derivatives, call by call, of the outputs with random signs; None where there are none.

    ``skipped`` are the sizes of batches before this one that other processes take, with signs of their own.

    Raises
    ------
    ForeignError
        The network's forward or backward pass fails.
    """
    calls: list[tuple[str, GradientEdge]] = []

    def keep_edge(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            with our_own():
                # the edge, not the tensor: an activation may work in place
                if output.requires_grad:
                    calls.append((name, get_gradient_edge(output)))

        return hook

    hooks = [layer.register_forward_hook(keep_edge(name)) for name, layer in layers.items()]
    with hooked(hooks), evaluating(model), requiring_gradients(model), torch.enable_grad():
        given = to(inputs, device_of(model))
        outputs = run(partial(everything_raw, model) if is_detector(model) else model, given)
        for size in skipped:
            for out in _with_derivative(outputs):
                _signs((size, *out.shape[1:]), signs)
        projection = _projected(outputs, signs)
        if projection is None or not calls:
            return None
        with foreign("The network's backward pass"):
            found = torch.autograd.grad(projection, [edge for _, edge in calls], allow_unused=True)
    return [(name, slope) for (name, _), slope in zip(calls, found, strict=True) if slope is not None]


def _projected(outputs: Any, generator: torch.Generator) -> Tensor | None:
    """The sum of all outputs with random signs; None where they have no derivative.

    Of several outputs, each is first scaled so that its variance in all of one sample is 1: a map of many
    pixels or of large numbers must not drown the others.
    """
    found = _with_derivative(outputs)
    parts = [(out * _signs(out.shape, generator).to(out)).sum() * _scale(out, found) for out in found]
    return torch.stack(parts).sum() if parts else None


def _with_derivative(outputs: Any) -> list[Tensor]:
    return [out for out in tensors_in(outputs) if out.requires_grad and out.numel()]


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return 2 * torch.randint(2, tuple(shape), generator=generator) - 1


def _scale(out: Tensor, every: Sequence[Tensor]) -> float:
    if len(every) == 1:
        return 1.0
    energy = out.detach().double().var(correction=0) * out[0].numel()
    # a constant says nothing, and its derivatives must not weigh
    return float(energy.clamp_min(1e-24).rsqrt()) if energy > 0 else 0.0
