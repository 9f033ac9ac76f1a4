"""The paper's networks: sizes, key names, the padded shortcut."""

import pytest
import torch
from torch import nn

from mint_compress.nn.counting import parameters
from mint_compress.zoo import BUILDERS, INPUT_SHAPES, PaddedBlock


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp", 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10),
        ("vgg16_cifar", 14_987_722),
        # Table 6 of He et al. 2015: 0.27 M and 0.85 M
        ("resnet20_cifar", 269_722),
        ("resnet56_cifar", 853_018),
    ],
)
def test_parameter_counts(name, count):
    assert parameters(BUILDERS[name]()) == count


@pytest.mark.parametrize("name", BUILDERS)
def test_shape_in_shape_out(name):
    model = BUILDERS[name](num_classes=7).eval()
    assert model(torch.zeros(2, *INPUT_SHAPES[name])).shape == (2, 7)


def test_vgg16_keys():
    model = BUILDERS["vgg16_cifar"]()
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    pools = [n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)]
    assert convolutions == [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]
    assert pools == [f"features.{i}" for i in (6, 13, 23, 33, 43)]
    assert {k: tuple(v.shape) for k, v in model.classifier.state_dict().items()} == {
        **{"0.weight": (512, 512), "0.bias": (512,), "1.weight": (512,), "1.bias": (512,)},
        **{"1.running_mean": (512,), "1.running_var": (512,), "1.num_batches_tracked": ()},
        **{"3.weight": (10, 512), "3.bias": (10,)},
    }


@pytest.mark.parametrize(("name", "blocks"), [("resnet20_cifar", 3), ("resnet56_cifar", 9)])
def test_resnet_keys(name, blocks):
    weights = [k for k, v in BUILDERS[name]().state_dict().items() if v.dim() > 1]
    stages = [f"layer{s}.{b}.conv{c}.weight" for s in (1, 2, 3) for b in range(blocks) for c in (1, 2)]
    assert weights == ["conv1.weight", *stages, "linear.weight"]


def test_mlp_takes_other_widths():
    model = BUILDERS["mlp"](num_classes=3, hidden=(8, 6))
    assert [tuple(p.shape) for p in model.parameters()] == [(8, 784), (8,), (6, 8), (6,), (3, 6), (3,)]


def test_shortcut_takes_every_second_pixel_between_zero_channels():
    block = PaddedBlock(4, 8, stride=2).eval()
    # with its last scale at zero, the block is its shortcut and the ReLU behind it
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2].relu())
    assert not out[:, [0, 1, 6, 7]].any()


def test_block_of_equal_width_adds_its_input():
    block = PaddedBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(block(x), x.relu())
