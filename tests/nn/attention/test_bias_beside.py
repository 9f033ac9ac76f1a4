"""Attention of timm that adds biases beside its layer calls the layer instead, and its heads can go."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mint_compress as mc
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.nn.attention.separating import separate_attention_, separate_layers
from mint_compress.nn.contexts import seeded
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_

timm = pytest.importorskip("timm")
OF_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
OF_SWIN = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 6)}
SMALL: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": OF_VIT,
    "eva02_tiny_patch14_224": OF_VIT,
    "swinv2_tiny_window8_256": {**OF_SWIN, "window_size": 4},
}


def built(name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=5, drop_path_rate=0.0, **SMALL[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_it_computes_the_same_and_loses_heads(name: str, tmp_path: Path) -> None:
    with seeded(0):
        model = built(name)
        x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
    (note,) = separate_attention_(model)
    assert note == "q_bias and v_bias of timm's attention are the bias of the layer qkv: " + (
        f"its heads can go ({len(separate_layers(model))} of them)"
    )
    torch.testing.assert_close(model(x), wanted)
    groups = find_groups(model, x[:1])
    assert [g.name.split(".")[0] for g in groups if not g.prunable] == ["head"]
    # the heads together are as wide as the stream, by the way that timm writes it: both lose the same share
    masks = {g.name: np.zeros(g.width, dtype=bool) for g in groups if g.prunable}
    for group in groups:
        for positions, step in group.shares if group.prunable else ():
            masks[group.name][positions[:step]] = True
    plan = make_plan(groups, masks, asked=None)
    heads = {name: own["num_heads"] for name, own in plan.sizes.items() if "num_heads" in own}
    assert len(heads) == len(separate_layers(model))
    assert all(heads[each] < model.get_submodule(each).num_heads for each in heads)  # type: ignore[operator]
    assert all(g.prunable for g in after_trial(model, x[:1], groups, plan) if g.name in masks)
    small = prune_(copy.deepcopy(model), plan)
    mc.save(small, tmp_path / "a.safetensors")
    again = mc.load(tmp_path / "a.safetensors", builder=partial(built, name))
    assert torch.equal(again(x), small(x)) and parameters(again) == plan.parameters[1]
    again(x).sum().backward()
