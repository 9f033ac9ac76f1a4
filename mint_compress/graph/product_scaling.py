"""How the products beside the layers (attention's two) shrink with the channel groups, told by labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mint_compress.errors import ForeignError, OwnFault, foreign, is_strict
from mint_compress.graph.costs import Dimension, Product
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.label_store import Labels
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.labels import Units, compact
from mint_compress.nn.copying import copied
from mint_compress.nn.io import count
from mint_compress.nn.matrix_products import MatrixProduct, Place, watching_products

log = logging.getLogger(__name__)

Axis = tuple[tuple[Tensor, int], ...]
"""The labels along one dimension of a product: tensors of them, and which of their dimensions it is."""
Places = Mapping[int, tuple[str, int]]
"""Root of a unit -> the prunable group and the position that it stands for."""


@dataclass(frozen=True, eq=False)
class _Followed:
    """A product, and the labels along its dimensions."""

    module: str
    macs: int
    axes: tuple[Axis, ...]


def scaled_products(
    model: nn.Module,
    inputs: tuple[Any, ...],
    groups: Sequence[ChannelGroup],
    counted: Mapping[str, int],
) -> tuple[Product, ...]:
    """The products beside a network's layers, with the dimensions that shrink when channels go.

    A pass on the same inputs carries the labels of all channels. The operands of a matrix product show
    which channels run along its dimensions: the heads of attention, or the channels summed over.

    Parameters
    ----------
    model, inputs
        The network and its positional inputs.
    groups
        Its channel groups.
    counted
        Module -> MACs of its products, from :func:`module_macs`. Where a module does something else in the
        pass with labels, or where labels cannot be told apart, its products are not predicted.
    """
    if not counted:
        return ()
    own_copy = copied(model).cpu().eval()
    inputs = tuple(x.cpu() if isinstance(x, Tensor) else x for x in inputs)
    recorder = Recorder(own_copy)
    followed = _followed(recorder, own_copy, inputs)
    totals: Counter[str] = Counter()
    for product in followed:
        totals[product.module] += product.macs
    places = _places(recorder, groups)
    found = [
        _product(p, recorder.units, places) for p in followed if totals[p.module] == counted.get(p.module)
    ]
    others = (name for name in counted if counted[name] != totals[name])
    return (*found, *(Product(name, counted[name], predicted=False) for name in others))


def _followed(recorder: Recorder, model: nn.Module, inputs: tuple[Any, ...]) -> list[_Followed]:
    """Every product of a pass; none when it cannot be followed to its end."""
    products: list[_Followed] = []
    batch = count(inputs)

    def seen(product: MatrixProduct) -> None:
        if product.place is Place.MODULE:
            axes = _axes(product, recorder.labels)
            products.extend(
                _Followed(product.name, macs // batch, own)
                for macs, own in zip(product.macs, axes, strict=True)
            )

    try:
        # the mode that watches is the outer one: it sees an operation before it has labels for what it gave
        with watching_products(model, seen), foreign("The network's forward pass"):
            recorder.run(inputs)
    except (ForeignError, OwnFault) as error:
        if is_strict() and isinstance(error, OwnFault):
            raise
        log.warning("what products of activations will cost is not predicted (%s)", error)
        return []
    return products


def _axes(product: MatrixProduct, labels: Labels) -> tuple[tuple[Axis, ...], ...]:
    """The dimensions of each matrix product that an operation makes.

    Operations other than these hold the channels that they read, so that nothing of them shrinks.
    """
    if len(product.macs) == 2:
        queries, keys, values = (compact(labels.of(t)) for t in product.args[:3])
        *batch, rows, summed, columns = _axes_of(queries, keys.transpose(-2, -1))
        batch = [(*axis, (values, d)) for d, axis in enumerate(batch)]
        return (*batch, rows, summed, columns), (*batch, rows, (*columns, (values, -2)), ((values, -1),))
    if product.operation in ("mm", "bmm"):
        one, other = (compact(labels.of(t)) for t in product.args[:2])
        return (_axes_of(one, other),)
    return ((),)


def _axes_of(one: Tensor, other: Tensor) -> tuple[Axis, ...]:
    """Of ``(..., n, k) @ (..., k, m)``: batch dimensions, then n, k and m."""
    batch = (((one, d), (other, d)) for d in range(one.ndim - 2))
    return (*batch, ((one, -2),), ((one, -1), (other, -2)), ((other, -1),))


def _places(recorder: Recorder, groups: Sequence[ChannelGroup]) -> dict[int, tuple[str, int]]:
    """What every channel that may go is called in its group."""
    units = {(t.layer, t.side): t.units for t in recorder.touches}
    places: dict[int, tuple[str, int]] = {}
    for group in groups:
        for member in group.members if group.prunable else ():
            if (member.layer, member.side) in units:
                roots = recorder.units.find(units[member.layer, member.side]).numpy()[member.channels]
                named = [(group.name, position) for position in member.positions.tolist()]
                places.update(zip(roots.tolist(), named, strict=True))
    places.pop(0, None)
    return places


def _product(followed: _Followed, units: Units, places: Places) -> Product:
    """The product with the dimensions along which channels of prunable groups run."""
    known = torch.tensor(sorted(places), dtype=torch.int64)
    dimensions = []
    for axis in followed.axes:
        sources = [_along(labels, dim, units, known) for labels, dim in axis]
        if any(source is None for source in sources):
            return Product(followed.module, followed.macs, predicted=False)
        roots = [source for source in sources if source is not None and source.any()]
        if not roots:
            continue
        together = roots[0]
        for other in roots[1:]:
            if together.shape != other.shape or ((together != other) & (together > 0) & (other > 0)).any():
                return Product(followed.module, followed.macs, predicted=False)
            together = np.maximum(together, other)
        dimensions.append(_dimension(together, places))
    return Product(followed.module, followed.macs, tuple(dimensions))


def _along(labels: Tensor, dim: int, units: Units, known: Tensor) -> NDArray[np.int64] | None:
    """The unit at every index of a dimension, 0 where it is not known; None where it takes two dimensions."""
    roots = units.find(labels)
    roots = torch.where(torch.isin(compact(roots), known), compact(roots), 0)
    varying = units.varying(roots)
    if len(varying) > 1:
        return None
    if dim % roots.ndim not in varying:
        return np.zeros(1, dtype=np.int64)
    return roots.movedim(dim, 0).flatten(1)[:, 0].numpy() if roots.ndim > 1 else roots.numpy()


def _dimension(roots: NDArray[np.int64], places: Places) -> Dimension:
    positions: dict[str, list[int]] = {}
    for root in roots[roots > 0].tolist():
        group, position = places[root]
        positions.setdefault(group, []).append(position)
    return Dimension(len(roots), {group: np.array(p) for group, p in positions.items()})
