"""Attention in layers of its own does what nn.MultiheadAttention does, and its heads can go."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mint_compress as mc
from mint_compress.checkpoints.builders import Builder, remember_builder
from mint_compress.errors import MintError
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.nn.attention.multihead import SeparateAttention
from mint_compress.nn.attention.separating import restore_separate_, separate_attention_
from mint_compress.nn.contexts import seeded
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_


def pair(**options: Any) -> tuple[nn.MultiheadAttention, SeparateAttention]:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(12, 3, **options).double().eval()
    for parameter in packed.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return packed, SeparateAttention(packed).eval()


def given(*, first: bool, widths: tuple[int, int] = (12, 12)) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    sizes = ((2, 5, 12), (2, 7, widths[0]), (2, 7, widths[1]))
    made = tuple(torch.randn(*s, generator=draw, dtype=torch.float64) for s in sizes)
    q, k, v = made if first else (x.transpose(0, 1) for x in made)
    return q, k, v


MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])},
    "causal": {"attn_mask": torch.ones(5, 7, dtype=torch.bool).triu(2)},
    "added": {"attn_mask": torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(5, 7)},
    "a head's": {"attn_mask": torch.linspace(-1, 1, 210, dtype=torch.float64).reshape(6, 5, 7)},
    "both": {
        "attn_mask": torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(5, 7),
        "key_padding_mask": torch.linspace(-2, 0, 14, dtype=torch.float64).reshape(2, 7),
    },
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("first", [True, False])
def test_the_same_outputs_and_weights(masks: dict[str, Tensor], first: bool) -> None:
    packed, separate = pair(batch_first=first)
    for need, average in itertools.product((True, False), repeat=2):
        options = {**masks, "need_weights": need, "average_attn_weights": average}
        one, other = packed(*given(first=first), **options), separate(*given(first=first), **options)
        torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-10)


def test_other_widths_of_keys_no_biases_and_no_batch() -> None:
    packed, separate = pair(kdim=6, vdim=9, batch_first=True, bias=False)
    q, k, v = given(first=True, widths=(6, 9))
    torch.testing.assert_close(separate(q, k, v), packed(q, k, v))
    torch.testing.assert_close(separate(q[0], k[0], v[0]), packed(q[0], k[0], v[0]))
    assert parameters(separate) == parameters(packed)


def test_a_transformer_of_pytorch_takes_no_way_of_its_own_past_it() -> None:
    with seeded(0):
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)
        model = nn.Sequential(nn.Linear(5, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 3)).eval()
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    wanted = model(x)
    assert separate_attention_(model) == (
        "nn.MultiheadAttention has layers of its own for q, k and v: its heads can go (2 of them)",
    )
    torch.testing.assert_close(model(x), wanted)
    called = []
    model[1].layers[1].self_attn.register_forward_hook(lambda *_: called.append(1))  # type: ignore[union-attr, index, operator]
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted)
    assert called == [1]


def test_what_stays_as_it_is() -> None:
    class Own(nn.MultiheadAttention):
        """A subclass, whose forward pass may be another."""

    hooked = nn.MultiheadAttention(4, 2)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleList([Own(4, 2), nn.MultiheadAttention(4, 2, add_bias_kv=True), hooked])
    model.append(nn.MultiheadAttention(4, 2, add_zero_attn=True))
    assert separate_attention_(model) == ()
    assert not any(isinstance(m, SeparateAttention) for m in model)
    with pytest.raises(MintError, match="The file has attention '0', which the architecture has not"):
        restore_separate_(model, ["0"])


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 8, 2, 4, 24, 20, num_classes=3).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos" not in name:
            nn.init.normal_(parameter, 0, 0.2)
    return model


def test_torchvisions_vit_loses_heads_and_width_and_comes_back_from_its_file(tmp_path: Path) -> None:
    with seeded(0):
        model = vit()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
    separate_attention_(model)
    torch.testing.assert_close(model(x), wanted)
    groups = find_groups(model, x[:1])
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    heads = [f"{name}.self_attention.q_proj" for name in layers]
    assert {g.name: g.width for g in groups if g.prunable} == {
        "conv_proj": 24,
        **dict.fromkeys(heads, 4),
        **dict.fromkeys([f"{name}.mlp.0" for name in layers], 20),
    }
    masks = {heads[0]: np.isin(np.arange(4), [1, 2]), heads[1]: np.isin(np.arange(4), [0])}
    plan = make_plan(groups, masks, asked=None)
    assert [own["num_heads"] for own in plan.sizes.values()] == [2, 3]
    deaf = copy.deepcopy(model)
    for name, gone in ((layers[0], slice(6, 18)), (layers[1], slice(0, 6))):
        deaf.get_submodule(f"{name}.self_attention.out_proj").weight.data[:, gone] = 0  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(prune_(copy.deepcopy(model), plan)(x), deaf(x))
    masks["conv_proj"] = np.arange(24) < 9
    plan = make_plan(groups, masks, asked=None)
    assert all(g.prunable for g in after_trial(model, x[:1], groups, plan) if g.name in masks)
    small = prune_(copy.deepcopy(model), plan)
    mc.save(small, tmp_path / "a.safetensors")
    again = mc.load(tmp_path / "a.safetensors", builder=vit)
    assert torch.equal(again(x), small(x)) and parameters(again) == plan.parameters[1]
    again(x).sum().backward()


def test_compress_does_it_by_itself(tmp_path: Path) -> None:
    with seeded(0):
        model = vit()
    remember_builder(model, Builder(f"{__name__}:vit"), (3, 16, 16))
    small, report = mc.compress(
        model, ratio=0.5, output=tmp_path / "small.onnx", calibration_images=64, bench_seconds=0.1, round_to=1
    )
    assert any("its heads can go (2 of them)" in note for note in report.notes)
    assert report.ratio is not None and report.ratio.removed >= 0.5
    assert report.parity is not None and report.parity.max_rel < 1e-4
    x = torch.randn(3, 3, 16, 16)
    again = mc.load(tmp_path / "small.safetensors", builder=vit)
    torch.testing.assert_close(again(x), small(x))
    assert {type(m).__name__ for m in model.modules() if "Attention" in type(m).__name__} == {
        "MultiheadAttention"
    }
