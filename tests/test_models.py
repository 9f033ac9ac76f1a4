"""From files to networks: which builder fits, what is said when none does, exact round trips."""

import json
import os
import sys
import textwrap

import pytest
import torch
from torch import nn

from mint_compress import fingerprints
from mint_compress.architectures import WithoutRandomInit, known_builders, outline, resolve
from mint_compress.checkpoints import Builder, save
from mint_compress.errors import MintError
from mint_compress.models import builder_of, input_shape_of, load, load_model, remember_builder
from mint_compress.zoo import BUILDERS


def randomise(model: nn.Module) -> nn.Module:
    """Statistics as after training, so that a forgotten buffer shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("running_mean"):
                tensor.normal_(generator=generator)
    return model.eval()


def difference(one: nn.Module, other: nn.Module, *shape: int) -> float:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (one(x) - other(x)).abs().max().item()


def prune_block(block, kept):
    """Keep some inner channels of a residual block, by hand."""
    block.conv1.weight = nn.Parameter(block.conv1.weight[kept])
    block.conv1.out_channels = len(kept)
    for name in ("weight", "bias"):
        setattr(block.bn1, name, nn.Parameter(getattr(block.bn1, name)[kept]))
    for name in ("running_mean", "running_var"):
        setattr(block.bn1, name, getattr(block.bn1, name)[kept])
    block.bn1.num_features = len(kept)
    block.conv2.weight = nn.Parameter(block.conv2.weight[:, kept])
    block.conv2.in_channels = len(kept)


def own(tmp_path, monkeypatch, text):
    """A module of the user's, in the working folder."""
    (tmp_path / "ownbuilder.py").write_text("from torch import nn\n" + textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ownbuilder", raising=False)


# ---------------------------------------------------------------- which builder


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("classes", [10, 7])
def test_the_zoo_is_recognised(tmp_path, name, classes):
    model = randomise(BUILDERS[name](num_classes=classes))
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder == Builder(f"zoo:{name}", {} if classes == 10 else {"num_classes": 7})
    assert loaded.input_shape == ((1, 28, 28) if name == "mlp" else (3, 32, 32))
    assert loaded.plan is None
    assert difference(loaded.module, model, *loaded.input_shape) == 0
    assert not any(m.training for m in loaded.module.modules())
    assert builder_of(loaded.module) == loaded.builder
    assert input_shape_of(loaded.module) == loaded.input_shape


def test_files_without_batch_counters(tmp_path):
    model = randomise(BUILDERS["resnet20_cifar"]())
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "a.th")
    loaded = load_model(tmp_path / "a.th")
    assert difference(loaded.module, model, 3, 32, 32) == 0
    assert loaded.module.bn1.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("mobilenet_v3_small", (3, 224, 224)),
        # cannot be built on the meta device
        ("regnet_y_400mf", (3, 224, 224)),
        ("squeezenet1_1", (3, 224, 224)),
        ("efficientnet_b1", (3, 240, 240)),
    ],
)
def test_torchvision_is_recognised(tmp_path, name, shape):
    from torchvision import models

    with WithoutRandomInit():
        model = models.get_model(name, weights=None, num_classes=7)
    state = {k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder == Builder(f"torchvision:{name}", {"num_classes": 7})
    assert loaded.input_shape == shape
    assert all(torch.equal(v, state[k]) for k, v in loaded.module.state_dict().items())
    assert all(not v.is_meta for v in (*loaded.module.parameters(), *loaded.module.buffers()))


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("googlenet", "aux_logits"),
        ("inception_v3", "aux_logits"),
        ("deeplabv3_mobilenet_v3_large", "aux_loss"),
    ],
)
def test_auxiliary_heads_are_built_as_the_file_has_them(tmp_path, name, option, auxiliary):
    option_set = {option: auxiliary}
    if option == "aux_logits":
        shapes = outline(f"torchvision:{name}", option_set)
    else:
        shapes = outline(f"torchvision:{name}", option_set if auxiliary else {})
    state = {k: torch.zeros(()).expand(s).clone() for k, s in shapes.items()}
    torch.save(state, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder.name == f"torchvision:{name}"
    assert loaded.builder.kwargs.get(option, False) is auxiliary
    assert loaded.module.state_dict().keys() == shapes.keys()


def test_torchvision_comes_before_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model("resnet18"))
    torch.save(model.state_dict(), tmp_path / "timm_resnet18.pt")
    loaded = load_model(tmp_path / "timm_resnet18.pt")
    assert loaded.builder.name == "torchvision:resnet18"
    assert difference(loaded.module, model, 3, 64, 64) == 0
    assert load_model(tmp_path / "timm_resnet18.pt", arch="timm:resnet18").builder.name == "timm:resnet18"


def test_ties_are_broken_by_the_name_of_the_file_or_named(tmp_path):
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model("efficientnet_b0", num_classes=5))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(MintError, match=r"fits several.*timm:efficientnet_b0, .*Choose with --arch"):
        load_model(tmp_path / "model.pt")
    for stem, name in (("efficientnet_b0_ra-3dd342df", "efficientnet_b0"), ("TF_efficientnet_b0", None)):
        os.rename(tmp_path / "model.pt", tmp_path / f"{stem}.pt")
        loaded = load_model(tmp_path / f"{stem}.pt")
        assert loaded.builder == Builder(f"timm:{name or 'tf_efficientnet_b0'}", {"num_classes": 5})
        assert "file name" in loaded.notes[-1]
        os.rename(tmp_path / f"{stem}.pt", tmp_path / "model.pt")
    assert load_model(tmp_path / "model.pt", arch="timm:efficientnet_b0").input_shape == (3, 224, 224)


def test_without_timm_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("regnety_002").state_dict(), tmp_path / "a.pt")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MintError, match="timm:regnety_002, which needs timm: pip install timm"):
        load_model(tmp_path / "a.pt")
    with pytest.raises(MintError, match="pip install timm"):
        load_model(tmp_path / "a.pt", arch="timm:regnety_002")


def test_the_recorded_architecture_decides_when_it_fits(tmp_path):
    state = randomise(BUILDERS["resnet20_cifar"]()).state_dict()
    torch.save({"arch": "resnet20_cifar", "state_dict": state}, tmp_path / "a.pt")
    assert "recorded in the file" in load_model(tmp_path / "a.pt").notes[-1]
    # a name that torchvision uses for something else, and one that would open a connection
    for arch in ("resnet18", "timm:hf-hub:a/b", "os:system", "raft_large"):
        torch.save({"arch": arch, "state_dict": state}, tmp_path / "a.pt")
        loaded = load_model(tmp_path / "a.pt")
        assert loaded.builder.name == "zoo:resnet20_cifar"
        assert "by its keys and shapes" in loaded.notes[-1]


# ---------------------------------------------------------------- nothing fits


def fits_nothing(path, state, match, **kwargs):
    torch.save(state, path)
    with pytest.raises(MintError, match=match) as caught:
        load_model(path, **kwargs)
    assert "\n" not in str(caught.value)


def test_the_nearest_builder_and_the_first_difference(tmp_path):
    file = tmp_path / "a.pt"
    state = BUILDERS["resnet20_cifar"]().state_dict()
    renamed = {k.replace("linear", "fc"): v for k, v in state.items()}
    fits_nothing(
        file,
        renamed,
        "nearest is zoo:resnet20_cifar: the file lacks its key 'linear.weight' and "
        "the file has a key 'fc.weight' that it does not know. Give --arch package.module:callable",
    )
    fits_nothing(file, {**state, "extra": torch.ones(1)}, "resnet20_cifar: the file has a key 'extra'")
    pruned = {**state, "layer1.0.conv1.weight": torch.ones(12, 16, 3, 3)}
    fits_nothing(
        file, pruned, r"'layer1.0.conv1.weight' is \(12, 16, 3, 3\) in the file and \(16, 16, 3, 3\) there"
    )
    shallow = {k: v for k, v in state.items() if not k.startswith("layer3.2")}
    fits_nothing(file, shallow, "zoo:resnet20_cifar: the file lacks its key 'layer3.2.conv1.weight'")
    fits_nothing(file, {"foo": torch.ones(1)}, "fits no builder. The nearest is .* 'foo'")


def test_the_nearest_in_torchvision(tmp_path):
    state = {k: torch.zeros(s) for k, s in outline("torchvision:mobilenet_v2", {}).items()}
    state["classifier.2.weight"] = state.pop("classifier.1.weight")
    fits_nothing(
        tmp_path / "a.pt",
        state,
        "nearest is torchvision:mobilenet_v2: the file lacks its key 'classifier.1",
    )


def test_a_wrong_arch(tmp_path):
    state = BUILDERS["resnet20_cifar"]().state_dict()
    file = tmp_path / "a.pt"
    fits_nothing(file, state, "does not fit --arch resnet56_cifar: the file lacks", arch="resnet56_cifar")
    fits_nothing(file, state, "Unknown architecture 'resnet20'. Near it: resnet20_cifar", arch="resnet20")
    fits_nothing(file, state, "Unknown architecture 'timm:nothing'", arch="timm:nothing")
    fits_nothing(file, state, "no_such_module:f cannot be imported", arch="no_such_module:f")


def test_resolve():
    assert resolve("vgg16_cifar") == "zoo:vgg16_cifar"
    assert resolve("vgg16") == "torchvision:vgg16"
    assert resolve("torchvision:vgg16") == "torchvision:vgg16"
    assert resolve("package.module:callable") == "package.module:callable"


# ---------------------------------------------------------------- callables of the user's


def test_arch_is_a_callable(tmp_path, monkeypatch):
    own(
        tmp_path,
        monkeypatch,
        """
        def fixed():
            return nn.Sequential(nn.Linear(4, 3))
        def free(num_classes=3, depth=1):
            return nn.Sequential(nn.Linear(4, num_classes))
        class Scope:
            Inner = staticmethod(fixed)
        net = fixed()
        def fails():
            raise ValueError("no")
        def needs(argument):
            pass
        def none():
            return None
        """,
    )
    state = nn.Sequential(nn.Linear(4, 7)).state_dict()
    torch.save(state, tmp_path / "a.pt")
    loaded = load_model("a.pt", arch="ownbuilder:free")
    assert loaded.builder == Builder("ownbuilder:free", {"num_classes": 7})
    assert loaded.input_shape is None
    assert torch.equal(loaded.module[0].weight, state["0.weight"])
    for arch, match in {
        "ownbuilder:fixed": r"'0.weight' is \(7, 4\) in the file and \(3, 4\) there",
        "ownbuilder:Scope.Inner": "does not fit",
        "ownbuilder:net": "is a Sequential, not a function or class",
        "ownbuilder:gone": "cannot be imported: AttributeError",
        "ownbuilder:fails": "failed when it was called with no arguments: ValueError: no",
        "ownbuilder:needs": "TypeError",
        "ownbuilder:none": "returned a NoneType",
    }.items():
        with pytest.raises(MintError, match=match):
            load_model("a.pt", arch=arch)


# ---------------------------------------------------------------- whole modules


def test_a_whole_torchvision_module(tmp_path):
    from torchvision import models

    model = randomise(models.resnet18(num_classes=5))
    torch.save(model, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt", arch="resnet18")
    assert loaded.builder == Builder("torchvision:resnet18", {"num_classes": 5})
    assert loaded.input_shape == (3, 224, 224)
    assert difference(loaded.module, model, 3, 64, 64) == 0
    assert loaded.notes[-1] == "--arch resnet18 was not needed"


def test_a_whole_module_that_was_changed_is_not_taken_for_its_builder(tmp_path):
    from torchvision import models

    model = models.resnet18()
    model.layer1[0].conv1.stride = (2, 2)
    torch.save(model, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder is None
    assert loaded.input_shape is None


# ---------------------------------------------------------------- round trips of saved files


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
        ({"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": "x"}}}, "zoo:mlp cannot be built"),
        ({"builder": {"name": "zoo:mlp", "kwargs": {"num_classes": 10**18}}}, "zoo:mlp cannot be built"),
        ({"builder": "zoo:mlp"}, "without a valid builder"),
        ({"shapes": {"layers.0": {"forward": 3}}}, "layers.0.forward to 3, which is not a size"),
        ({"shapes": {"layers.0": {"in_features": "x"}}}, "in_features to 'x', which is not a size"),
        ({"shapes": {"layer": {}}}, "has a layer 'layer'"),
        ({"shapes": 3}, "header that cannot be used"),
        ({"ties": {"layers.0.bias": "layers.0.bias"}}, "no tensor 'layers.0.bias'"),
        ({"ties": {"x": "y"}}, "has a tensor 'x'"),
        ({"input_shape": ["a"]}, "header that cannot be used"),
    ],
)
def test_headers_are_not_trusted(tmp_path, monkeypatch, change, match):
    from safetensors import safe_open
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    model = BUILDERS["mlp"](hidden=(3,))
    remember_builder(model, Builder("zoo:mlp", {"hidden": [3]}), (1, 28, 28))
    save(model, "a.safetensors")
    assert torch.equal(load("a.safetensors").layers[0].weight, model.layers[0].weight)
    with safe_open("a.safetensors", "pt") as file:
        header = json.loads(file.metadata()["mint_compress"])
    save_file(model.state_dict(), "b.safetensors", {"mint_compress": json.dumps({**header, **change})})
    for read in (load, load_model):
        with pytest.raises(MintError, match=match):
            read("b.safetensors")
    assert not os.path.exists("canary")


# ---------------------------------------------------------------- fingerprints


def test_the_table_knows_the_installed_builders():
    table = json.loads(fingerprints.TABLE.read_text())
    named = {n for family in table["families"].values() for n in family["builders"]}
    wanted = {n for n in known_builders() if not n.startswith("timm:")}
    assert wanted <= named
    assert fingerprints.TABLE.stat().st_size < 600_000


@pytest.mark.parametrize(
    "name", ["zoo:vgg16_cifar", "torchvision:squeezenet1_1", "torchvision:regnet_x_400mf"]
)
def test_the_table_is_up_to_date(name):
    fresh = fingerprints.generate([name])["families"]
    stored = json.loads(fingerprints.TABLE.read_text())["families"]
    ((key, family),) = fresh.items()
    assert stored[key]["sketch"] == family["sketch"]
    assert set(stored[key]["head"]) >= set(family["head"])
    assert stored[key]["builders"][name][1] == list(family["builders"][name][1])


def test_similarity_estimates_the_shared_share():
    one = [f"a{i}" for i in range(4000)]
    other = [f"a{i}" for i in range(2000)] + [f"b{i}" for i in range(2000)]
    # a third is shared; with 32 draws two standard deviations are 0.17
    assert fingerprints.similarity(fingerprints.sketch(one), fingerprints.sketch(other)) == pytest.approx(
        1 / 3, abs=0.17
    )
    few = fingerprints.similarity(fingerprints.sketch(["a", "b", "c"]), fingerprints.sketch(["b", "c", "d"]))
    assert few == 0.5
    assert fingerprints.similarity([], []) == 0


def test_building_leaves_the_global_generator_alone(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "def make():\n    return nn.Linear(4, 3)")
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "a.pt")
    torch.save(BUILDERS["mlp"]().state_dict(), tmp_path / "b.pt")
    before = torch.get_rng_state()
    load_model(tmp_path / "a.pt", arch="ownbuilder:make")
    load_model(tmp_path / "b.pt")
    assert torch.equal(torch.get_rng_state(), before)
