"""One pass over calibration data: what every consumer layer saw and gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress import processes
from mint_compress.allocator import trim_memory
from mint_compress.errors import MintError, our_own
from mint_compress.graph.groups import ChannelGroup, consumer_units
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.io import count, forward, of_batch, select
from mint_compress.nn.memory_format import fastest_layout
from mint_compress.nn.recurrent import RECURRENT, read_and_made, reader
from mint_compress.progress import Progress
from mint_compress.scoring.layer_moments import LayerMoments
from mint_compress.scoring.layer_samples import LayerSamples
from mint_compress.scoring.moment_forms import MomentsOfLayer, WatchedLayer
from mint_compress.scoring.output_sensitivity import output_sensitivity


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibration data showed.

    Attributes
    ----------
    moments
        Consumer layer -> second moments of its inputs.
    samples
        Consumer layer -> ``(n, C_in)`` spatial means of its inputs and ``(n, C_out)`` of its outputs,
        paired row by row, one row an image (MINT, section III-A).
    sensitivity
        Consumer layer -> ``(C_out,)``: how much the network's outputs change with each of its outputs,
        see :func:`output_sensitivity`; only beside moments, and not where derivatives do not reach.
    images
        Number of images seen.
    seed
        Seed of the positions drawn.
    """

    moments: Mapping[str, LayerMoments]
    samples: Mapping[str, tuple[Tensor, Tensor]]
    images: int
    seed: int
    sensitivity: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, input, output)`` after every forward of the layers; hooks go at the end.

    Of a recurrent layer the output is what the gates are given of the inputs
    (:func:`mint_compress.nn.recurrent.reader`).
    """

    def hook(name: str) -> Callable[..., None]:
        @our_own()
        def after(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            see(name, *read_and_made(layer, first_given(args, kwargs), output))

        return after

    handles = [layer.register_forward_hook(hook(n), with_kwargs=True) for n, layer in layers.items()]
    with hooked(handles):
        yield


def calibrate(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Any],
    *,
    seed: int = 0,
    moments: bool = True,
    samples: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Run the calibration batches once and keep what every consumer of a prunable group saw.

    Processes that share the work run every so manieth batch each, and come to what one comes to.

    Parameters
    ----------
    model
        The trained network; run in eval mode, without gradients, and left as it was.
    groups
        From :func:`find_groups`; only consumers of prunable groups are watched.
    batches
        Input tensors, or (inputs, labels) pairs, whose labels are not looked at. Several inputs are a
        tuple, which must be in such a pair, or a dict.
    seed
        Draws the pixels that are kept where an image has more than are needed, and directions of outputs.
    moments, samples
        What to collect.
    progress
        Called after each batch.

    Returns
    -------
    Calibration

    Raises
    ------
    MintError
        No batches, or activations that are not finite.
    """
    batches = list(batches)
    images = sum(count(of_batch(b)) for b in batches)
    if not images:
        raise MintError("Calibration needs at least one batch of images; none was given.")
    trim_memory()
    modules = dict(model.named_modules())
    units = consumer_units(groups)
    consumers = {n: modules[n] for n in units}
    layers = {n: WatchedLayer(reader(modules[n]), unit, images, seed) for n, unit in units.items()}
    observer = _Observer(
        list(layers),
        {n: MomentsOfLayer(layer) for n, layer in layers.items()} if moments else {},
        {n: LayerSamples(layer.module) for n, layer in layers.items()} if samples else {},
    )
    with evaluating(model), fastest_layout([model], of_batch(batches[0])), torch.no_grad():
        if processes.world() > 1:
            with watching(consumers, observer.look):
                forward(model, (select(of_batch(batches[0]), slice(1)), None))
        for done, batch in enumerate(batches):
            if processes.is_mine(done):
                with watching(consumers, observer.of(batch, done)):
                    forward(model, batch)
            else:
                observer.skip()
            if progress:
                progress("calibrate", done + 1, len(batches))
        observer.add_up_()
        called = observer.called()
        watched = {n: modules[n] for n in called if not isinstance(modules[n], RECURRENT)}
        sensitivity = output_sensitivity(model, watched, batches, seed=seed) if moments else {}
    return Calibration(
        # what a result is made of goes before the next one comes
        {n: observer.moments.pop(n).result() for n in called} if moments else {},
        {n: observer.samples.pop(n).result() for n in called} if samples else {},
        images,
        seed,
        sensitivity,
    )


@dataclass(frozen=True, eq=False)
class _Observer:
    """What is collected of each layer, by name.

    Attributes
    ----------
    names
        Of all layers.
    moments, samples
        Of the layers of which they are wanted.
    finite
        Layers called so far -> whether all that they gave was finite.
    """

    names: Sequence[str]
    moments: dict[str, MomentsOfLayer]
    samples: dict[str, LayerSamples]
    finite: dict[str, bool] = field(default_factory=dict)

    def look(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """See a layer's input and output in a pass that does not count."""
        if name in self.moments:
            self.moments[name].look(inputs, output)

    def skip(self) -> None:
        """Draw what a batch that another process takes would draw."""
        for one in self.moments.values():
            one.skip()

    def add_up_(self) -> None:
        """Take in what all processes have seen."""
        if processes.world() == 1:
            return
        known = {name for name, one in self.moments.items() if one.is_known}
        for finite, theirs in processes.gathered((dict(self.finite), known)):
            for name, is_finite in finite.items():
                self.finite[name] = self.finite.get(name, True) and is_finite
            known &= theirs
        for name in self.called():
            if self.moments and name not in known:
                raise MintError(f"Layer {name} runs for some images only. Score with one process alone.")
            for kind in (self.moments, self.samples):
                if name in kind:
                    kind[name].add_up_()

    def of(self, batch: Any, number: int) -> Callable[[str, Tensor, Tensor], None]:
        """What sees a layer's input and output while the network runs on the batch of that number."""
        images = count(of_batch(batch))

        def see(name: str, inputs: Tensor, output: Tensor) -> None:
            self.finite[name] = self.finite.get(name, True) and _is_finite(output)
            if name in self.samples:
                self.samples[name].add(inputs, output, images, number)
            if name in self.moments:
                self.moments[name].add(inputs, output)

        return see

    def called(self) -> list[str]:
        """The layers that the network called, which must all have given finite values."""
        called = [name for name in self.names if name in self.finite]
        for name in called:
            if not self.finite[name]:
                raise MintError(
                    f"Layer {name} gives values that are not finite. Check the calibration images."
                )
        return called


def _is_finite(values: Tensor) -> bool:
    # what is not finite leaves no finite sum, which is found faster; half precision could overflow
    return bool(values.sum(dtype=torch.promote_types(values.dtype, torch.float32)).isfinite())
