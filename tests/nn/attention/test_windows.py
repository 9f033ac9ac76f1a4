"""Windows made of layers do what torchvision's Swin Transformers do, and their heads can go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

import mint_compress as mc
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.nn.attention.separating import separate_attention_, separate_layers
from mint_compress.nn.attention.windows import SeparateWindowAttention
from mint_compress.nn.contexts import seeded
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_

VERSIONS = {"v1": ShiftedWindowAttention, "v2": ShiftedWindowAttentionV2}


def drawn_(module: nn.Module) -> nn.Module:
    """All parameters different from each other: as made, tables and biases are nearly zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return module.eval()


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("sides", [(8, 12), (7, 9), (4, 9), (3, 2)], ids=str)
@pytest.mark.parametrize("shift", [(0, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "none"])
def test_the_same_outputs(version: Any, sides: tuple[int, int], shift: tuple[int, int], biases: bool) -> None:
    """Windows that fill the image, that do not, and that are larger than a side or both."""
    with seeded(0):
        packed = drawn_(version(12, [4, 3], list(shift), 3, qkv_bias=biases, proj_bias=biases)).double()
        x = torch.randn(2, *sides, 12, dtype=torch.float64)
    separate = SeparateWindowAttention(packed)
    assert not separate.training
    torch.testing.assert_close(separate(x), packed(x), atol=1e-12, rtol=1e-10)


def swin(version: str = "v1") -> nn.Module:
    first = version == "v1"
    block = SwinTransformerBlock if first else SwinTransformerBlockV2
    sizes: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 12, "depths": [2, 2], "num_heads": [3, 6]}
    sizes |= {"window_size": [3, 3], "mlp_ratio": 2.0, "num_classes": 5, "stochastic_depth_prob": 0.0}
    merging = PatchMerging if first else PatchMergingV2
    return drawn_(SwinTransformer(**sizes, block=block, downsample_layer=merging))


def swin_v2() -> nn.Module:
    return swin("v2")


@pytest.mark.parametrize("builder", [swin, swin_v2])
def test_swin_loses_heads_and_width_and_comes_back_from_its_file(builder: Any, tmp_path: Path) -> None:
    with seeded(0):
        model = builder()
        x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
    (note,) = separate_attention_(model)
    assert note.endswith("its heads can go (4 of them)") and len(separate_layers(model)) == 4
    torch.testing.assert_close(model(x), wanted)
    groups = find_groups(model, x[:1])
    assert [g.name for g in groups if not g.prunable] == ["head"], [(g.name, g.reason) for g in groups]
    heads = {g.name: g.width for g in groups if g.name.endswith("attn.q_proj")}
    assert sorted(heads.values()) == [3, 3, 6, 6]
    name, other = list(heads)[1], list(heads)[2]
    masks = {name: np.arange(3) == 1, other: np.isin(np.arange(6), [0, 5])}
    plan = make_plan(groups, masks, asked=None)
    deaf = copy.deepcopy(model)
    for layer, gone in ((name, [4, 5, 6, 7]), (other, [0, 1, 2, 3, 20, 21, 22, 23])):
        out: Any = deaf.get_submodule(layer.replace("q_proj", "out_proj"))
        out.weight.data[:, gone] = 0
    torch.testing.assert_close(prune_(copy.deepcopy(model), plan)(x), deaf(x))
    masks |= {g.name: np.arange(g.width) < g.width // 3 for g in groups if g.prunable and g.name not in heads}
    plan = make_plan(groups, masks, asked=None)
    assert all(g.prunable for g in after_trial(model, x[:1], groups, plan) if g.name in masks)
    small = prune_(copy.deepcopy(model), plan)
    mc.save(small, tmp_path / "a.safetensors")
    again = mc.load(tmp_path / "a.safetensors", builder=builder)
    assert torch.equal(again(x), small(x)) and parameters(again) == plan.parameters[1]
    again(x).sum().backward()
