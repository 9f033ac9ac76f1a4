"""From files to networks: which builder fits, and what is said when none does."""

import os
import sys

import pytest
import torch
from surgery import difference, own, randomise
from torch import nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.building import build, outline
from mint_compress.checkpoints.identifying import fitted
from mint_compress.checkpoints.loading import builder_of, input_shape_of, load, load_model
from mint_compress.checkpoints.random_init import WithoutRandomInit
from mint_compress.checkpoints.registry import resolve
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.zoo import BUILDERS


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


@pytest.mark.parametrize(
    "name",
    [
        "ssdlite320_mobilenet_v3_large",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
    ],
)
def test_the_number_of_classes_of_a_detector(name):
    """Its heads have as many outputs, or that many times anchors or sides of a box."""
    shapes = outline(f"torchvision:{name}", {"num_classes": 7})
    assert fingerprints.candidates(shapes)[0] == f"torchvision:{name}"
    assert fitted(f"torchvision:{name}", shapes) == (Builder(f"torchvision:{name}", {"num_classes": 7}), None)
    assert fingerprints.input_shape(f"torchvision:{name}") == (3, *(320 if "320" in name else 800,) * 2)


def test_a_detector_is_recognised(tmp_path):
    name = "ssdlite320_mobilenet_v3_large"
    shapes = outline(f"torchvision:{name}", {"num_classes": 7})
    torch.save({k: torch.zeros(()).expand(s).clone() for k, s in shapes.items()}, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder == Builder(f"torchvision:{name}", {"num_classes": 7})
    assert loaded.input_shape == (3, 320, 320)
    assert load_model(tmp_path / "a.pt", arch=name).builder == loaded.builder


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
    fits_nothing(
        file, {"foo": torch.ones(1)}, "fits no builder, and its keys resemble those of none. Give --arch"
    )


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
        "ownbuilder:fixed": r"'0.weight' is \(7, 4\) in the file and \(3, 4\) there. "
        "If these are its classes, let ownbuilder:fixed take num_classes, or make 7.",
        "ownbuilder:Scope.Inner": "does not fit",
        "ownbuilder:net": "is a Sequential, not a function or class",
        "ownbuilder:gone": "cannot be imported: AttributeError",
        "ownbuilder:fails": "failed when it was called with no arguments: ValueError: no",
        "ownbuilder:needs": "TypeError",
        "ownbuilder:none": "returned a NoneType",
    }.items():
        with pytest.raises(MintError, match=match):
            load_model("a.pt", arch=arch)


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


def test_attributes_that_are_not_printed_count_as_well(tmp_path):
    model = BUILDERS["resnet20_cifar"]()
    torch.save(model, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").builder == Builder("zoo:resnet20_cifar")
    model.layer2[0].stride = 3
    torch.save(model, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").builder is None


def test_transform_input_is_kept_or_asked_for(tmp_path):
    from torchvision import models

    with WithoutRandomInit():
        model = models.googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=True)
    for tensor in model.state_dict().values():
        tensor.fill_(0)
    torch.save(model, tmp_path / "a.pt")
    loaded = load_model(tmp_path / "a.pt")
    assert loaded.builder.kwargs == {"aux_logits": False, "transform_input": True}
    save(loaded.module, tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors").transform_input is True
    torch.save(model.state_dict(), tmp_path / "c.pt")
    loaded = load_model(tmp_path / "c.pt")
    assert loaded.module.transform_input is False
    assert "torchvision's own weights need True" in loaded.notes[-1]


@pytest.mark.parametrize("change", [torch.Tensor.long, torch.Tensor.bool])
def test_whole_numbers_for_weights(tmp_path, change):
    state = BUILDERS["mlp"]().state_dict()
    state["layers.4.weight"] = change(state["layers.4.weight"])
    torch.save(state, tmp_path / "a.pt")
    kind = str(state["layers.4.weight"].dtype)[6:]
    with pytest.raises(MintError, match=f"'layers.4.weight' holds {kind} numbers in the file and float32"):
        load_model(tmp_path / "a.pt")


def test_averaged_batch_counters(tmp_path):
    state = BUILDERS["resnet20_cifar"]().state_dict()
    state["bn1.num_batches_tracked"] = torch.tensor(7.0)
    torch.save(state, tmp_path / "a.pt")
    counter = load_model(tmp_path / "a.pt").module.bn1.num_batches_tracked
    assert (counter.item(), counter.dtype) == (7, torch.int64)


def test_building_leaves_the_global_generator_alone(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "def make():\n    return nn.Linear(4, 3)")
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "a.pt")
    torch.save(BUILDERS["mlp"]().state_dict(), tmp_path / "b.pt")
    before = torch.get_rng_state()
    load_model(tmp_path / "a.pt", arch="ownbuilder:make")
    load_model(tmp_path / "b.pt")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{"std": 0.02}, {"mean": 5.0, "std": 0.1, "a": -2.0, "b": 2.0}])
def test_initialisers_that_draw_until_all_fits_end(settings):
    # what is in memory before lies outside every interval
    weight = nn.Parameter(torch.full((50, 50), 1e30))
    with WithoutRandomInit():
        nn.init.trunc_normal_(weight, **settings)
    assert bool((weight.abs() <= 2).all())


def test_building_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build(Builder("torchvision:convnext_tiny", {}))
    outline("torchvision:squeezenet1_1", {})
    assert torch.equal(torch.get_rng_state(), before)
