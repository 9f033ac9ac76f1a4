"""What every layer of a network counts, as a function of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mint_compress.graph.costs import LayerShape, Network, Product
from mint_compress.graph.groups import ChannelGroup
from mint_compress.graph.product_scaling import scaled_products
from mint_compress.nn.counting import first_owners, module_macs
from mint_compress.nn.devices import device_of
from mint_compress.nn.layers import (
    NORMS,
    WEIGHTED,
    in_channels,
    is_depthwise,
    out_channels,
    rows_beside,
    side_channels,
)
from mint_compress.nn.recurrent import RECURRENT, input_weights


def network_of(model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[ChannelGroup]) -> Network:
    """Count every module that owns parameters; one that several modules share counts at the first."""
    where = device_of(model)
    macs = module_macs(model, tuple(x.to(where) if isinstance(x, torch.Tensor) else x for x in inputs))
    bare = {m.layer: m for g in groups for m in g.members if m.kind == "parameter"}
    layers: dict[str, LayerShape] = {}
    products: list[Product] = []
    for name, module, own in first_owners(model):
        for key in [n for n in own if (f"{name}.{n}" if name else n) in bare]:
            full = f"{name}.{key}" if name else key
            size = own.pop(key)
            layers[full] = LayerShape(outputs=size.shape[bare[full].dim], weights=size.numel())
        if own:
            shape = _layer_shape(module, own, macs.layers.get(name, 0) + macs.uncalled.get(name, 0))
            layers[name] = replace(shape, called=bool(macs.layers.get(name)))
            if isinstance(module, RECURRENT):  # multiplies its states as well
                products.append(Product(name, macs.layers.get(name, 0) - shape.macs))
    # a layer that owns none of its parameters: they are another's, so nothing of either can go
    shared = {**macs.layers, **macs.uncalled}.items()
    products += [Product(name, count) for name, count in shared if name not in layers]
    return Network(layers, (*products, *scaled_products(model, inputs, groups, macs.products)))


def _layer_shape(module: Any, own: Mapping[str, nn.Parameter], macs: int) -> LayerShape:
    sizes = {n: p.numel() for n, p in own.items()}
    weights, bias = sizes.pop("weight", 0), sizes.pop("bias", 0)
    fixed = sum(sizes.values())
    if isinstance(module, WEIGHTED):
        inputs, outputs = 0 if is_depthwise(module) else in_channels(module), out_channels(module)
        beside = sum(sizes[n] for n in rows_beside(module) if n in sizes)
        per_output = int(bias > 0) + beside // outputs
        return LayerShape(inputs, outputs, weights, per_output, fixed - beside, macs)
    if isinstance(module, RECURRENT):
        reading = sum(sizes[name] for name in input_weights(module) if name in sizes)
        multiplied = sum(count for name, count in sizes.items() if name.startswith("weight"))
        fixed += weights + bias - reading
        return LayerShape(in_channels(module), 1, reading, 0, fixed, macs * reading // max(1, multiplied))
    if isinstance(module, (*NORMS, nn.Embedding)):
        outputs = side_channels(module, "norm" if isinstance(module, NORMS) else "embedding", "both", 0)
        if weights % outputs == 0 and bias in (0, outputs):
            return LayerShape(0, outputs, weights, int(bias > 0), fixed)
    return LayerShape(fixed=fixed + weights + bias)
