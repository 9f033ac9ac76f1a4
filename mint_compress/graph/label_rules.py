"""What each operation does to the labels of the channels that pass through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from mint_compress.graph.label_meeting import meet, product, united
from mint_compress.graph.label_store import Labels
from mint_compress.graph.labels import Reading, Units, aligned, compact, spread

# fmt: off
MOVES = {
    "permute", "transpose", "t", "numpy_T", "expand", "slice", "select", "squeeze", "unsqueeze", "unbind",
    "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "cat", "stack", "roll", "flip",
    "repeat", "index", "index_select", "gather", "diagonal", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "unfold", "constant_pad_nd", "tril", "triu", "rot90",
}
"""The same operation moves the labels as it moves the values: those of its first argument."""

CUTS = {"slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"}
"""What takes parts out of a tensor along one dimension."""

RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
SAME = {
    "clone", "alias", "detach", "contiguous", "_to_copy", "lift_fresh", "dropout", "native_dropout",
    "hardswish", "hardswish_", "hardtanh", "hardtanh_", "leaky_relu", "nan_to_num", "masked_fill",
    "masked_fill_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "bernoulli", "bernoulli_", "_softmax", "_log_softmax", "_safe_softmax",
}
POOLS = {
    f"{name}{k}d{tail}": k
    for k in (1, 2, 3)
    for name in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool",
        "upsample_nearest", "_upsample_nearest_exact", "upsample_bilinear", "_upsample_bilinear",
        "upsample_bicubic", "_upsample_bicubic", "upsample_linear", "upsample_trilinear",
        "reflection_pad", "replication_pad",
    )
    for tail in ("", "_with_indices", "_aa")
}
"""What mixes the last ``k`` dimensions, and no others."""

CREATES = {"new_zeros", "new_ones", "new_full", "new_empty"}
REDUCTIONS = {
    "mean", "sum", "amax", "amin", "var", "std", "max", "min", "linalg_vector_norm", "norm", "logsumexp",
    "prod", "any", "all", "var_mean", "std_mean",
}
NORMALISATIONS = {"native_layer_norm", "_fused_rms_norm", "rms_norm"}
# fmt: on


def follow(store: Labels, func: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Find the labels of what an operation gave."""
    _rule(func)(store, func, by_name(func, args, kwargs), output)


def _rule(func: Any) -> Rule:
    name = _name(func)
    if name in RULES:
        return RULES[name]
    if "scaled_dot_product" in name:
        return _attended
    return _pointwise if torch.Tag.pointwise in func.tags else _not_understood


def is_reduction(func: Any) -> bool:
    """Whether an operation gives one value for all that stands along some dimensions."""
    return _name(func) in REDUCTIONS


def reduced_dims(given: Mapping[str, Any], ndim: int) -> list[int]:
    """The dimensions along which a reduction goes, from its arguments by name."""
    dims = given.get("dim")
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)]


def by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation, in its own order."""
    names = [a.name for a in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _name(func: Any) -> str:
    """Of an operation, without its namespace."""
    name: str = func._schema.name.partition("::")[2]
    return name


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_iter(value) if isinstance(t, Tensor)]


# ---- the rules: (labels so far, the operation, its arguments by name, its output)


def _not_understood(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """Whatever channels it reads stay; what it gives has none."""
    for tensor in _tensors(list(given.values())):
        store.units.freeze(store.of(tensor), f"the operation {_name(func)} is not understood")


def _created(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """New values hold no channels."""


def _restrided(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """The same elements at other strides keep their labels."""
    if list(given["size"]) != list(output.shape):
        _not_understood(store, func, given, output)


def _unchanged(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """Every element keeps its label."""
    labels = store.of(next(iter(given.values())))
    for tensor in _tensors(output):
        store.put(tensor, labels.expand(tensor.shape))


def _reshaped(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """The labels keep their order in memory."""
    labels = store.of(next(iter(given.values())))
    laid_out = labels.reshape(output.shape)
    if store.reading is Reading.ROWS:
        store.together |= _pair_rows(store.units, labels, laid_out)
    store.put(output, laid_out)


def _pair_rows(units: Units, labels: Tensor, laid_out: Tensor) -> bool:
    """Where a dimension of channels becomes two, join along the shorter one; whether it does."""
    varying = units.varying(laid_out)
    for dim in range(min(labels.ndim, laid_out.ndim - 1)):
        rows, columns = laid_out.shape[dim : dim + 2]
        divided = labels.shape[:dim] == laid_out.shape[:dim] and labels.shape[dim] == rows * columns
        if divided and {dim, dim + 1} <= varying:
            along = dim if rows < columns else dim + 1
            units.join(laid_out.narrow(along, 0, 1), laid_out)
            return True
    return False


def _moved(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """The operation itself moves the labels as it moves the values."""
    key, first = next(iter(given.items()))
    labels = [store.of(t) for t in first] if isinstance(first, list | tuple) else store.of(first)
    rest = {k: v for k, v in given.items() if k != key}
    if "value" in rest:
        rest["value"] = 0  # what is padded is no channel
    moved = func(labels, *rest.values())
    for tensor, own in zip(_tensors(output), _tensors(moved), strict=True):
        store.put(tensor, own)
    if _name(func) in CUTS and isinstance(labels, Tensor):
        _note_parts(store, labels, _tensors(moved), given.get("dim", 0) % labels.ndim)


def _note_parts(store: Labels, labels: Tensor, parts: list[Tensor], dim: int) -> None:
    """Remember what channels were cut into; a slice leaves a rest, whose label is what no part has."""
    size = sum(part.shape[dim] for part in parts)
    if dim in store.units.varying(labels) and (len(parts) > 1 or size < labels.shape[dim]):
        store.parts.append((*map(compact, parts), *([compact(labels)] if size < labels.shape[dim] else [])))


def _pointwise(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """Channels at the same element go together."""
    tensors = _tensors(list(given.values()))
    for one in _tensors(output):
        met = [_effective(store, t) for t in tensors]
        store.put(one, meet(store.units, _beside_shared(store, met), one.shape))


def _beside_shared(store: Labels, met: list[Tensor]) -> list[Tensor]:
    """Labels of what meets: of heads alone, where the same meets each of them, which then stays."""
    ndim = max((labels.ndim for labels in met), default=0)
    for place, shared in enumerate(met):
        dims = {d + ndim - shared.ndim for d in store.units.varying(shared)}
        for labels in met[:place] + met[place + 1 :]:
            if dims and store.has_heads(aligned(labels, ndim), dims):
                store.units.freeze(shared, "all heads share it")
                store.as_heads(aligned(labels, ndim), dims)
                return [found for i, found in enumerate(met) if i != place]
    return met


def _gated(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Channels at the same place in either half go together."""
    halves = store.of(given["self"]).chunk(2, given.get("dim", -1))
    store.put(output, meet(store.units, halves, output.shape))


def _pooled(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """What is mixed goes together; the dimensions in front keep their labels."""
    count = POOLS[_name(func)]
    labels = store.of(next(iter(given.values())))
    lead = labels.shape[: labels.ndim - count]
    bare = compact(labels, keep=range(len(lead)))
    first = bare.reshape(*lead, -1)
    top = first.amax(-1)
    store.units.join(top[..., None], first)
    for tensor in _tensors(output):
        store.put(tensor, top.reshape(*lead, *[1] * count).expand(tensor.shape))


def _pooled_regions(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Regions (k, c, h, w) are cut out of maps (n, c, H, W): every region has the channels of the maps."""
    labels = store.of(given["input"])
    own = compact(labels, keep=(1,)).movedim(1, 0).reshape(labels.shape[1], -1)
    top = own.amax(-1)
    store.units.join(top[:, None], own)
    store.put(output, top.reshape(1, -1, 1, 1).expand(output.shape))


def _sampled(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """What is looked up in maps (n, c, h, w), between their pixels, has their channels.

    Where every head has maps of its own, what says where to look goes with them (deformable attention).
    """
    labels, grid, units = store.of(given["input"]), store.of(given["grid"]), store.units
    lead = compact(labels, keep=(0, 1)).reshape(*labels.shape[:2], -1)
    top = lead.amax(-1)
    units.join(top[..., None], lead)
    places = compact(grid, keep=(0,)).reshape(len(grid), -1)
    if 0 in units.varying(grid) and 0 in units.varying(labels):
        units.join(top.amax(1, keepdim=True), top)
        units.join(top.amax(1, keepdim=True), places)
        top = units.find(top)
    else:
        units.freeze(grid, "they say where others are looked up")
    store.put(output, top.reshape(*top.shape, *[1] * (output.ndim - 2)).expand(output.shape))


def _unfolded(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Patches (n, c * places, l) of maps (n, c, h, w): each channel once for every place of the kernel."""
    own = store.units.across(store.of(given["self"]), -3)
    places = output.shape[-2] // len(own)
    store.put(output, spread(own.repeat_interleave(places), output.ndim - 2, output.shape))


def _put_back(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Maps that patches are summed into: what stands at the places of a kernel goes together."""
    own = store.units.across(store.of(given["self"]), -2).reshape(output.shape[-3], -1)
    store.put(output, spread(store.units.across(own, 0), output.ndim - 3, output.shape))


def _written_in(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Rows ``x[i] = values`` have the same channels as all others."""
    into, values, where = given["self"], given["values"], given["indices"]
    if len(where) != 1 or values.ndim != into.ndim or values.shape[1:] != into.shape[1:]:
        _not_understood(store, func, given, output)
    elif values.shape[0]:
        own, before = store.of(values), store.of(into)
        row = own[:1]
        store.units.join(row, own)
        store.put(output, united(store.units, before, row.expand(before.shape)))
    else:
        store.put(output, store.of(into))


def _copied(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """What is written over a part of a tensor has its channels; an unlabelled tensor of its own gets them."""
    into, own = store.of(output), store.of(given["src"]).expand(output.shape)
    if bool(((compact(into) == 0) == (compact(own) == 0)).all()):
        store.units.join(into, own)
    elif output._is_view() or bool(compact(into).any()):
        _not_understood(store, func, given, output)
    else:
        store.put(output, own)


def _reduced(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """A label stays where it is the only one along what is reduced."""
    labels = store.of(next(iter(given.values())))
    dims = reduced_dims(given, labels.ndim)
    for tensor in _tensors(output):
        keepdim = tensor.ndim == labels.ndim
        store.put(tensor, store.units.reduced(labels, dims, keepdim=keepdim).reshape(tensor.shape))


def _normalised(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """The values keep their labels, and go together with weight and bias."""
    tensors = [t for t in given.values() if isinstance(t, Tensor)]
    result = _tensors(output)[0]
    store.put(result, meet(store.units, [store.of(t) for t in tensors], result.shape))


def _product_of_matrices(store: Labels, func: Any, given: dict[str, Any], output: Tensor) -> None:
    """Channels that are summed over go together in pairs (:func:`product`)."""
    factors = list(given.values())[:2]
    store.multiplied |= all(store.knows(t) for t in factors)
    one, other = (store.of(t) for t in factors)
    heads = _heads_beside_table(store, one, other)
    store.put(output, product(store.units, one, other) if heads is None else heads.expand(output.shape))


def _heads_beside_table(store: Labels, one: Tensor, other: Tensor) -> Tensor | None:
    """Labels of products of heads with a table that all of them share, as of relative positions; else None.

    The table stays, and so no head loses single channels, but heads may go.
    """
    last, units = one.ndim - 1, store.units
    for heads, table, summed, rows in ((one, other, last, last - 1), (other, one, last - 1, last)):
        vary, fixed = units.varying(heads), units.varying(table)
        beside = {d for d in vary - {summed} if d == rows or d not in fixed}
        if summed in vary and beside and 2 * last - 1 - summed in fixed and store.is_bare(table):
            units.freeze(table, "all heads share it")
            units.join_along(heads, {summed})
            return units.find(heads).narrow(summed, 0, 1)
    return None


def _attended(store: Labels, func: Any, given: dict[str, Any], output: Any) -> None:
    """Two products: queries meet keys, and these sums meet values; a mask is added between.

    Where heads share keys and values, these stand for as many heads beside each other.
    """
    store.multiplied = True
    q, k, v = (store.of(t) for t in list(given.values())[:3])
    if q.ndim > 3:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = product(store.units, q, k.transpose(-2, -1))
    mask = given.get("attn_bias", given.get("attn_mask"))
    if isinstance(mask, Tensor):
        scores = meet(store.units, [scores, _effective(store, mask)], scores.shape)
    store.put(_tensors(output)[0], product(store.units, scores, v))


Rule = Callable[[Labels, Any, dict[str, Any], Any], None]

RULES: dict[str, Rule] = {
    **dict.fromkeys(CREATES, _created),
    **dict.fromkeys(SAME, _unchanged),
    **dict.fromkeys(RESHAPES, _reshaped),
    **dict.fromkeys(NORMALISATIONS, _normalised),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(POOLS, _pooled),
    **dict.fromkeys(MOVES, _moved),
    **dict.fromkeys(("mm", "bmm"), _product_of_matrices),
    "as_strided_": _restrided,
    "glu": _gated,
    "im2col": _unfolded,
    "col2im": _put_back,
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _sampled),
    **dict.fromkeys(("roi_align", "roi_pool"), _pooled_regions),
    "copy_": _copied,
    **dict.fromkeys(("index_put", "index_put_"), _written_in),
}
"""Operation -> its rule. Of the others attention and whatever is computed element by element have one."""


# ---- what the rules are made of


def _effective(store: Labels, tensor: Tensor) -> Tensor:
    """Labels; what is expanded counts as one element along that dimension.

    So does a statistic over channels that is brought back to their shape; channels keep it.
    """
    labels = store.of(tensor)
    if store.knows(tensor) and bool(compact(labels).any()):
        return labels
    return labels[tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())]
