"""The refit of one layer: how much data it takes, the regression, and where its outcome is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mint_compress.nn.im2col import sample_positions
from mint_compress.nn.io import count, of_batch
from mint_compress.nn.linear_maps import linear_map
from mint_compress.nn.moments import MAX_COLUMNS, rows_wanted
from mint_compress.processes import by_main, world
from mint_compress.repair.layers_to_repair import LayerToRepair
from mint_compress.repair.network_pair import NetworkPair, PassPair, advance_to
from mint_compress.repair.ridge import DUAL_ROWS, RidgeFit
from mint_compress.repair.targets import target

LEAST_IMAGES = 256
"""From which a layer that is called several times is refitted, at least."""


@dataclass(frozen=True)
class Repair:
    """What the repair did to one layer.

    Attributes
    ----------
    layer
        Qualified name.
    before, after
        Share of the output variance that was missing on held-out images, without and with the refit.
    ridge
        The ridge chosen; None where no refit was better than leaving the layer as it was.
    images
        Of which it was fitted: those whose activations up to this layer there is memory for.
    """

    layer: str
    before: float
    after: float
    ridge: float | None
    images: int = 0


def refit_(
    layer: LayerToRepair,
    pairs: Sequence[PassPair | None],
    networks: NetworkPair,
    generator: torch.Generator,
) -> Repair:
    """Refit a layer, in place, to what the original gives at all of its calls.

    Processes that share the work add up what their passes bring; the main one solves for the weights of all.

    Parameters
    ----------
    layer
        Of the pruned network.
    pairs
        Passes that have paused at its first call; None: another process's.
    networks
        Whose passes these are; for further ones, if the layer is called again.
    generator
        Draws the positions that are looked at.
    """
    each = [count(of_batch(batch)) for batch in networks.batches[: len(pairs)]]
    size = _sample_size(layer, _extent(layer, pairs[0], each[0])[0], each)
    intercept = layer.norm is not None or layer.module.bias is not None
    linear = linear_map(layer.module)
    fit = RidgeFit.of(linear.columns, rows=size.rows, intercept=intercept)
    if layer.calls == 1:
        _add(fit, layer, pairs, each, size, generator)
    else:
        # what later calls bring is known only after going through the network
        fewer = replace(networks, batches=networks.batches[: size.batches])
        with fewer.passes([layer.name], {}) as others:
            for call in range(layer.calls):
                advance_to(layer.name, others, call + 1)
                _add(fit, layer, others, each, size, generator)
    fit.add_up_()
    prior = linear.matrix()
    chosen = by_main(lambda: fit.choose(prior).to(prior.device if world() == 1 else "cpu"))
    linear.write_(chosen.weight)
    if chosen.intercept is not None:
        _write_intercept_(layer.module, layer.norm, linear.by_channel(chosen.intercept.flatten()))
    layer.write_back_()
    return Repair(layer.name, chosen.before, chosen.after, chosen.ridge)


@dataclass(frozen=True)
class _SampleSize:
    """What a layer is fitted to: batches, positions of an image at a call, and rows in all, at most."""

    batches: int
    positions: int
    rows: int


def _sample_size(layer: LayerToRepair, places: int, each: Sequence[int]) -> _SampleSize:
    """As many rows as the layer's columns need, where its output has so many places."""
    linear = linear_map(layer.module)
    columns, groups = linear.columns, linear.groups
    batches, images = len(each), sum(each)

    def wanted(among: int) -> int:
        return rows_wanted(columns, among, groups) if columns <= MAX_COLUMNS else -(-DUAL_ROWS // among)

    if layer.calls > 1:
        # each further network-wide pass costs, and of a layer with many places few images say enough
        enough = max(LEAST_IMAGES, wanted(places * layer.calls))
        batches = min(batches, -(-enough // each[0]))
        images = sum(each[:batches])
    positions = wanted(images * layer.calls)
    return _SampleSize(batches, positions, min(positions, places) * images * layer.calls)


def _extent(layer: LayerToRepair, pair: PassPair | None, images: int) -> tuple[int, int]:
    """How many places the layer has now, and what an image is along the batch: several where it is cut up.

    Of processes that share the work the main one tells, to which the first batch belongs.
    """

    def tell() -> tuple[int, int]:
        assert pair is not None, "the main process has the first batch"
        made = layer.made(pair)
        return linear_map(layer.module).places(made), made.shape[0] // images

    return by_main(tell)


def _add(
    fit: RidgeFit,
    layer: LayerToRepair,
    pairs: Sequence[PassPair | None],
    each: Sequence[int],
    size: _SampleSize,
    generator: torch.Generator,
) -> None:
    """Take what the passes have brought to the layer, and what it should make of it."""
    seen, linear = 0, linear_map(layer.module)
    others = _extent(layer, pairs[0], each[0])
    for pair, batch in zip(pairs, each, strict=False):
        if pair is None:  # what another process draws
            sample_positions(others[0], size.positions, generator)
            seen += others[1] * batch
            continue
        given, wanted = layer.given(pair), target(layer, pair)
        positions = sample_positions(linear.places(wanted), size.positions, generator).to(given.device)
        x = linear.rows(given, wanted, positions)
        images = range(seen, seen + given.shape[0])
        fit.add(x, linear.outputs(wanted, positions), images)
        seen = images.stop


def _write_intercept_(layer: nn.Module, norm: nn.Module | None, intercept: Tensor) -> None:
    bias = layer.bias
    with torch.no_grad():
        if bias is not None:
            bias.copy_(intercept)  # type: ignore[operator]
        elif norm is not None:
            # BatchNorm subtracts its running mean, so that is where a constant can go
            norm.running_mean.sub_(intercept.to(norm.running_mean))  # type: ignore[union-attr, operator, arg-type]
