"""Pruned networks saved and loaded again: the same to the last bit, whatever was pruned."""

import copy
import os

import hostile
import numpy as np
import pytest
import torch
from hostile import rewrite
from surgery import difference, own, prune_block, randomise
from torch import nn

from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.headers import checksum
from mint_compress.checkpoints.loading import builder_of, load, load_model, remember_builder
from mint_compress.checkpoints.random_init import WithoutRandomInit
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.graph.finding import find_groups
from mint_compress.nn.contexts import seeded
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_
from mint_compress.zoo import BUILDERS


def test_a_pruned_network_comes_back_exactly(tmp_path):
    model = randomise(BUILDERS["resnet20_cifar"](num_classes=7))
    remember_builder(model, Builder("zoo:resnet20_cifar", {"num_classes": 7}), (3, 32, 32))
    prune_block(model.layer1[0], [0, 3, 5])
    prune_block(model.layer2[0], list(range(1, 32, 2)))
    save(model, tmp_path / "a.safetensors", plan={"layer1.0.conv1": [0, 3, 5]})

    again = load(tmp_path / "a.safetensors")
    assert difference(again, model, 3, 32, 32) == 0
    assert again.layer1[0].conv1.out_channels == again.layer1[0].bn1.num_features == 3
    assert repr(again) == repr(model)
    assert builder_of(again) == Builder("zoo:resnet20_cifar", {"num_classes": 7})

    again.train()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    again(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in again.parameters())
    optimizer.step()

    # a second pass starts from the file
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.builder == Builder("zoo:resnet20_cifar", {"num_classes": 7})
    assert loaded.input_shape == (3, 32, 32)
    assert loaded.plan == {"layer1.0.conv1": [0, 3, 5]}
    prune_block(loaded.module.layer1[0], [1])
    save(loaded.module, tmp_path / "b.safetensors")
    assert difference(load(tmp_path / "b.safetensors"), loaded.module, 3, 32, 32) == 0


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_torchvision_pruned_by_torch_pruning(tmp_path, name):
    import torch_pruning as tp
    from torchvision import models

    kwargs = {"num_classes": 6}
    if name == "googlenet":
        kwargs |= {"aux_logits": False, "init_weights": False}
    with WithoutRandomInit():
        model = models.get_model(name, weights=None, **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.05, generator=generator)
    randomise(model)
    kwargs.pop("init_weights", None)
    remember_builder(model, Builder(f"torchvision:{name}", kwargs), (3, 224, 224))
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    tp.pruner.BasePruner(
        model,
        torch.randn(1, 3, 64, 64),
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[head],
    ).step()
    save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert difference(again, model.eval(), 3, 64, 64) == 0
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_transformer_with_a_narrower_stream(tmp_path):
    from torchvision.models import VisionTransformer

    def make():
        return VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3).eval()

    model = make()
    # as Torch-Pruning leaves it: one half of the residual stream is gone, forward reads hidden_dim
    with torch.no_grad():
        for key, tensor in list(model.state_dict(keep_vars=True).items()):
            parent, _, leaf = key.rpartition(".")
            holder = model.get_submodule(parent)
            shape = [4 if n == 8 else 12 if n == 24 else n for n in tensor.shape]
            if key == "conv_proj.weight":
                shape = [4, 3, 8, 8]
            setattr(holder, leaf, nn.Parameter(torch.randn(shape) / 4))
    model.hidden_dim = model.conv_proj.out_channels = 4
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (4,)
        if isinstance(module, nn.MultiheadAttention):
            module.embed_dim = module.kdim = module.vdim = 4
            module.head_dim = 2
    save(model, tmp_path / "a.safetensors")
    assert difference(load(tmp_path / "a.safetensors", builder=make), model, 3, 16, 16) == 0


def test_timm_attention_with_fewer_heads(tmp_path):
    attention = pytest.importorskip("timm.layers")
    make = lambda: nn.Sequential(attention.Attention(8, num_heads=4)).eval()
    model = make()
    half = attention.Attention(8, num_heads=4)
    keep = torch.arange(24).view(3, 8)[:, :4].flatten()
    with torch.no_grad():
        model[0].qkv.weight = nn.Parameter(half.qkv.weight[keep])
        model[0].proj.weight = nn.Parameter(half.proj.weight[:, :4])
    model[0].qkv.out_features, model[0].proj.in_features = 12, 4
    model[0].num_heads, model[0].attn_dim = 2, 4
    save(model, tmp_path / "a.safetensors")
    assert difference(load(tmp_path / "a.safetensors", builder=make), model, 5, 8) == 0


def test_every_kind_of_layer(tmp_path):
    def make(width=8):
        return nn.ModuleDict(
            {
                "conv1d": nn.Conv1d(width, width, 3, groups=width),
                "conv3d": nn.Conv3d(width, 2 * width, 1),
                "up": nn.ConvTranspose2d(width, 2 * width, 2),
                "batch": nn.BatchNorm3d(width),
                "instance": nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
                "group": nn.GroupNorm(width // 2, width),
                "layer": nn.LayerNorm([width, 2]),
                "prelu": nn.PReLU(width),
                "embedding": nn.Embedding(10, width),
                "linear": nn.Linear(width, width, bias=False),
            }
        )

    narrow = make(4)
    save(narrow, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", builder=make)
    assert repr(again) == repr(narrow)
    assert again["layer"].normalized_shape == (4, 2)
    assert all(torch.equal(v, narrow.state_dict()[k]) for k, v in again.state_dict().items())


def test_ties_stay_ties(tmp_path):
    def untied():
        return nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))

    def tied():
        model = untied()
        model[1].weight = model[0].weight
        return model

    model = tied()
    save(model, tmp_path / "a.safetensors")
    for make in (tied, untied):
        again = load(tmp_path / "a.safetensors", builder=make)
        assert again[0].weight is again[1].weight
        assert torch.equal(again[0].weight, model[0].weight)


def test_a_module_without_a_builder(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    save(model, tmp_path / "a.safetensors")
    with pytest.raises(MintError, match=r"does not say which builder made it.*builder=callable"):
        load(tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", builder=lambda: nn.Sequential(nn.Linear(9, 9)))
    assert torch.equal(again[0].weight, model[0].weight)
    with pytest.raises(MintError, match="does not fit the builder"):
        load(tmp_path / "a.safetensors", builder=lambda: nn.Linear(4, 3))
    torch.save(model.state_dict(), tmp_path / "b.pt")
    with pytest.raises(MintError, match=r"was not written by mint_compress\.save"):
        load(tmp_path / "b.pt")


def test_builders_outside_the_known_ones_need_trust(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "open('canary', 'w')\ndef make(width=4):\n    return nn.Linear(width, 3)")
    model = nn.Linear(4, 3)
    remember_builder(model, Builder("ownbuilder:make", {"width": 4}), (4,))
    save(model, "a.safetensors")
    for read in (load, load_model):
        with pytest.raises(MintError, match=r"names the builder ownbuilder:make.*--trust ownbuilder"):
            read("a.safetensors")
    assert not os.path.exists("canary")
    assert torch.equal(load("a.safetensors", trust=["ownbuilder"]).weight, model.weight)
    assert os.path.exists("canary")
    loaded = load_model("a.safetensors", arch="ownbuilder:make")
    assert (loaded.builder, loaded.input_shape) == (Builder("ownbuilder:make"), (4,))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"builder": {"name": "os:system", "kwargs": {"command": "touch canary"}}}, "--trust os"),
        ({"builder": {"name": "timm:hf-hub:a/b", "kwargs": {}}}, "timm:hf-hub:a/b, which is not installed"),
        ({"builder": {"name": "torchvision:resnet18", "kwargs": {"weights": "DEFAULT"}}}, "'weights'"),
        (
            {"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": "x"}}},
            "'num_classes': x, which a file",
        ),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 10**18}}}, "'num_classes': 10"),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 10**6}}}, "said to have 1000000 classes"),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"hidden": [1] * 10**5}}}, "'hidden': .*which a file may"),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"hidden": "abc"}}}, "'hidden': abc, which a file may"),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"hidden": [4, 4]}}}, "no tensor 'layers.4"),
        ({"builder": "zoo:mlp"}, "without a valid builder"),
        ({"shapes": {"layers.0": {"forward": 3}}}, "layers.0.forward to 3, which is not a size"),
        ({"shapes": {"layers.0": {"in_features": "x"}}}, "in_features to 'x', which is not a size"),
        ({"shapes": {"layers.0": {"in_features": -3}}}, "in_features to -3, which is not a size"),
        ({"shapes": {"layers.0": {"in_features": float("nan")}}}, "in_features to nan, which is not a size"),
        ({"shapes": {"layers.0": {"in_features": True}}}, "in_features to True, which is not a size"),
        ({"shapes": {"layer": {}}}, "has a layer 'layer'"),
        ({"shapes": 3}, "header that cannot be used"),
        ({"ties": {"layers.0.bias": "layers.0.bias"}}, "no tensor 'layers.0.bias'"),
        ({"ties": {"x": "y"}}, "has a tensor 'x'"),
        ({"input_shape": ["a"]}, "header that cannot be used"),
    ],
)
def test_headers_are_not_trusted(tmp_path, monkeypatch, change, match):
    monkeypatch.chdir(tmp_path)
    model = BUILDERS["mlp"](hidden=(3,))
    remember_builder(model, Builder("zoo:mlp", {"hidden": [3]}), (1, 28, 28))
    save(model, "a.safetensors")
    assert torch.equal(load("a.safetensors").layers[0].weight, model.layers[0].weight)
    rewrite("a.safetensors", "b.safetensors", change)
    for read in (load, load_model):
        with pytest.raises(MintError, match=match):
            read("b.safetensors")
    assert not os.path.exists("canary")


def test_a_file_of_format_1_is_read(tmp_path):
    hostile.own(tmp_path / "a.safetensors")
    tensors = load(tmp_path / "a.safetensors").state_dict()
    old = {"format": 1, "crc32": checksum(tensors)}
    rewrite(tmp_path / "a.safetensors", tmp_path / "b.safetensors", old)
    again = load(tmp_path / "b.safetensors").state_dict()
    assert all(torch.equal(t, again[k]) for k, t in tensors.items())
    # the other checksum under the old number: how a flipped format would look
    rewrite(tmp_path / "a.safetensors", tmp_path / "c.safetensors", {"format": 1})
    with pytest.raises(MintError, match="checksum"):
        load(tmp_path / "c.safetensors")


def test_every_flipped_bit_of_a_header_is_noticed_or_harmless(tmp_path):
    content = hostile.own(tmp_path / "a.safetensors").read_bytes()
    model = load(tmp_path / "a.safetensors")
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for at in range(8, header, 3):
        (tmp_path / "b.safetensors").write_bytes(hostile.flipped(content, at, 1 << at % 8))
        try:
            again = load(tmp_path / "b.safetensors")
        except MintError:
            refused += 1
            continue
        assert repr(again) == repr(model)
        assert all(torch.equal(t, again.state_dict()[k]) for k, t in model.state_dict().items())
    # blanks pad the header: one may become a tab
    assert refused > 0.9 * len(range(8, header, 3))


def test_other_kernels_and_dimensions_are_another_architecture(tmp_path):
    save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "a.safetensors")
    narrow = lambda: nn.Sequential(nn.Conv2d(3, 8, 5))
    with pytest.raises(MintError, match=r"'0.weight' is \(4, 3, 3, 3\) in the file and \(8, 3, 5, 5\)"):
        load(tmp_path / "a.safetensors", builder=narrow)
    with pytest.raises(MintError, match=r"'0.weight' is \(4, 3, 3, 3\) in the file and \(8, 3, 5\)"):
        load(tmp_path / "a.safetensors", builder=lambda: nn.Sequential(nn.Conv1d(3, 8, 5)))


def test_heads_of_windows_go_and_come_back_from_a_file(tmp_path):
    swin = pytest.importorskip("timm.models.swin_transformer")

    def make():
        sizes = dict(img_size=32, patch_size=4, window_size=4, embed_dim=16)
        return swin.SwinTransformer(**sizes, depths=(2, 1), num_heads=(4, 8), num_classes=3).eval()

    with seeded(0):
        model, x = make(), torch.randn(2, 3, 32, 32)
    groups = find_groups(model, x[:1])
    masks = {g.name: np.arange(g.width) < g.width // 2 for g in groups if g.prunable}
    pruned = prune_(copy.deepcopy(model), make_plan(groups, masks, asked=0.5))
    assert [m.num_heads for m in pruned.modules() if type(m).__name__ == "WindowAttention"] == [2, 2, 4]
    save(pruned, tmp_path / "pruned.safetensors")
    assert torch.equal(load(tmp_path / "pruned.safetensors", builder=make)(x), pruned(x))
