"""One pass over calibration data: what every consumer layer saw and gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import MintError
from mint_compress.graph.groups import ChannelGroup, consumer_units
from mint_compress.nn.contexts import evaluating, first_given, hooked
from mint_compress.nn.im2col import input_rows, is_plain, output_positions, sample_positions, weight_matrix
from mint_compress.nn.input_selection import selected
from mint_compress.nn.io import count, forward, of_batch
from mint_compress.nn.layers import channel_groups, in_channels, taps
from mint_compress.nn.moments import MAX_COLUMNS, MomentSum, rows_wanted
from mint_compress.progress import Progress
from mint_compress.scoring.output_sensitivity import output_sensitivity
from mint_compress.scoring.wide_layers import Shares, contribution_units

LEAST_IMAGES = 1024
"""Places that a layer is looked at, at least, when it is described by contributions."""


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments of what a consumer layer multiplies with its weights.

    Attributes
    ----------
    form
        ``patches``: columns are (channel, kernel position) of the input patches, and the layer is
        exactly ``rows @ weight``. ``pixels``: columns are input channels (transposed or unusual
        convolutions). ``contributions``: columns are the units' shares of the output, which sum to it
        (layers too wide for patches).
    covariance
        ``(groups, columns, columns)`` float64, centred.
    mean
        ``(groups, columns)`` float64.
    weight
        ``(groups, columns, outputs)`` float64: rows times weight is what the layer gives, bias apart.
    column_units
        ``(groups, columns)`` int64: the unit each column belongs to, -1 for what stays.
    rows
        Number of rows accumulated.
    """

    form: str
    covariance: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    column_units: Tensor = field(repr=False)
    rows: int


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
    """Call ``see(name, input, output)`` after every forward of the layers; hooks go at the end."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args, kwargs, output: see(name, first_given(args, kwargs), output)

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
    modules = dict(model.named_modules())
    units = consumer_units(groups)
    watchers = {
        name: _Watcher(modules[name], unit, images, seed, moments, samples) for name, unit in units.items()
    }
    hooks = watching({n: modules[n] for n in units}, lambda n, x, y: watchers[n].see(x, y))
    with hooks, evaluating(model), torch.no_grad():
        for done, batch in enumerate(batches):
            for watcher in watchers.values():
                watcher.batch = count(of_batch(batch))
            forward(model, batch)
            if progress:
                progress("calibrate", done + 1, len(batches))
    seen = {name: w for name, w in watchers.items() if w.calls}
    for name, watcher in seen.items():
        if not watcher.finite:
            raise MintError(f"Layer {name} gives values that are not finite. Check the calibration images.")
    return Calibration(
        {n: w.moments() for n, w in seen.items()} if moments else {},
        {n: w.samples() for n, w in seen.items()} if samples else {},
        images,
        seed,
        output_sensitivity(model, {n: modules[n] for n in seen}, batches, seed=seed) if moments else {},
    )


class _Watcher:
    """Accumulates one consumer layer."""

    def __init__(self, layer: nn.Module, units: Tensor, images: int, seed: int, moments: bool, samples: bool):
        self.layer, self.units, self.images = layer, units, images
        self.generator = torch.Generator().manual_seed(seed)
        self.collect_moments, self.collect_samples = moments, samples
        self.form = ""
        self.calls = 0
        self.finite = True
        self.batch = 0
        self.sum = MomentSum()
        self.shares = Shares(layer, units)
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def see(self, inputs: Tensor, output: Tensor) -> None:
        self.calls += 1
        self.finite = self.finite and bool(output.isfinite().all())
        if self.collect_samples:
            given = selected(self.layer, inputs)
            means = (_spatial_mean(self.layer, tensor, self.batch) for tensor in (given, output))
            self.pairs.append((next(means), next(means)))
        if self.collect_moments:
            self.form = self.form or self._choose_form(inputs, output)
            for rows in self._rows(inputs, output):
                self.sum.add(rows)

    def _choose_form(self, inputs: Tensor, output: Tensor) -> str:
        if not is_plain(self.layer, inputs, output):
            return "pixels"
        columns = in_channels(self.layer) * taps(self.layer) // channel_groups(self.layer)
        return "patches" if columns <= MAX_COLUMNS else "contributions"

    def _rows(self, inputs: Tensor, output: Tensor) -> Iterator[Tensor]:
        if self.form == "pixels":
            yield self._pixel_rows(selected(self.layer, inputs))
            return
        columns = in_channels(self.layer) * taps(self.layer) // channel_groups(self.layer)
        wanted = rows_wanted(columns, self.images)
        if self.form == "contributions":
            wanted = -(-LEAST_IMAGES // self.images)  # every output is a row of its own
        positions = sample_positions(output_positions(self.layer, output), wanted, self.generator)
        rows = input_rows(self.layer, inputs, output, positions)
        if self.form == "patches":
            yield rows
        else:
            yield from self.shares.of(rows)

    def _pixel_rows(self, inputs: Tensor) -> Tensor:
        groups = channel_groups(self.layer)
        if isinstance(self.layer, nn.Linear):
            pixels = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).transpose(1, 2)
        else:
            pixels = inputs.flatten(2)
        positions = sample_positions(
            pixels.shape[2], rows_wanted(pixels.shape[1] // groups, self.images), self.generator
        ).to(inputs.device)
        picked = pixels.index_select(2, positions).reshape(inputs.shape[0], groups, -1, len(positions))
        return picked.permute(1, 0, 3, 2).reshape(groups, -1, picked.shape[2])

    def moments(self) -> LayerMoments:
        mean, covariance = self.sum.result()
        groups = channel_groups(self.layer)
        weight, units = weight_matrix(self.layer), self.units.reshape(groups, -1)
        if self.form == "contributions":
            covariance = self.shares.within(mean, covariance)
            units = contribution_units(self.units)[None]
            weight = torch.ones(1, units.shape[1], 1)
        elif self.form == "patches":
            units = units.repeat_interleave(taps(self.layer), dim=1)
        elif not getattr(self.layer, "transposed", False):
            # every kernel position is an output of its own: correlations between pixels are left out
            weight = weight.reshape(groups, units.shape[1], -1)
        return LayerMoments(
            self.form, covariance, mean, weight.to(covariance), units.to(covariance.device), self.sum.rows
        )

    def samples(self) -> tuple[Tensor, Tensor]:
        return torch.cat([x for x, _ in self.pairs]), torch.cat([y for _, y in self.pairs])


def _spatial_mean(layer: nn.Module, tensor: Tensor, images: int) -> Tensor:
    """One value a channel and image: the mean over space, or over tokens for a linear layer.

    Over the windows as well where a network cuts images into such, one after the other along the batch.
    """
    means = _means(layer, tensor)
    windows = len(means) // images if images and len(means) % images == 0 else 1
    return means.reshape(-1, windows, means.shape[1]).mean(1)


def _means(layer: nn.Module, tensor: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]).mean(1)
    return tensor.flatten(2).mean(2)
