"""The paper's networks, under the key names of the checkpoints that are about.

Each builder takes ``num_classes``; :data:`INPUT_SHAPES` says what a network takes, without the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

# output widths of VGG16's convolutions; "M" is a max pool that halves height and width
VGG16_WIDTHS: tuple[int | str, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    *(512, 512, 512, "M", 512, 512, 512, "M"),
)


class MLP(nn.Module):
    """Linear layers with ReLU between them, on flattened images of shape (n, 1, 28, 28)."""

    def __init__(self, num_classes: int = 10, hidden: Sequence[int] = (500, 300)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 28 * 28
        for following in hidden:
            layers += [nn.Linear(width, following), nn.ReLU(inplace=True)]
            width = following
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 28, 28) images -> (n, num_classes) logits."""
        out: Tensor = self.layers(x.flatten(1))
        return out


class VGG16(nn.Module):
    """VGG16 with batch normalisation for 32 x 32 images; the head is Linear 512-512-classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for following in VGG16_WIDTHS:
            if isinstance(following, str):
                layers.append(nn.MaxPool2d(2))
                continue
            # no bias: the batch normalisation behind it has one
            layers.append(nn.Conv2d(width, following, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(following), nn.ReLU(inplace=True)]
            width = following
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, num_classes)
        )
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) images -> (n, num_classes) logits."""
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


class PaddedBlock(nn.Module):
    """Residual block whose shortcut has no parameters (He et al. 2015, option A).

    Where the block halves the image, the shortcut takes every second pixel and pads the channels
    with zeros on both sides.
    """

    def __init__(self, width: int, following: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, following, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(following)
        self.conv2 = nn.Conv2d(following, following, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(following)
        self.stride = stride
        self.zero_channels = following // 4 if stride != 1 or width != following else 0

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) -> (n, following, h / stride, w / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x
        if self.zero_channels:
            sides = (self.zero_channels, self.zero_channels)
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for 32 x 32 images: three stages of n blocks, 16, 32 and 64 wide."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) images -> (n, num_classes) logits."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


def _stage(width: int, following: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = PaddedBlock(width, following, stride)
    return nn.Sequential(first, *(PaddedBlock(following, following, 1) for _ in range(blocks - 1)))


def _he_init(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def mlp(num_classes: int = 10, hidden: Sequence[int] = (500, 300)) -> nn.Module:
    """The paper's perceptron for MNIST, 784-500-300-10."""
    return MLP(num_classes, hidden)


def vgg16_cifar(num_classes: int = 10) -> nn.Module:
    """VGG16 with batch normalisation for CIFAR, 15 M parameters."""
    return VGG16(num_classes)


def resnet20_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-20 for CIFAR with padded shortcuts, 0.27 M parameters."""
    return CifarResNet(3, num_classes)


def resnet56_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-56 for CIFAR with padded shortcuts, 0.85 M parameters."""
    return CifarResNet(9, num_classes)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "vgg16_cifar": vgg16_cifar,
    "resnet20_cifar": resnet20_cifar,
    "resnet56_cifar": resnet56_cifar,
}

INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    "mlp": (1, 28, 28),
    "vgg16_cifar": (3, 32, 32),
    "resnet20_cifar": (3, 32, 32),
    "resnet56_cifar": (3, 32, 32),
}
