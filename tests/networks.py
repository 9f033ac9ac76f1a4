"""Tiny networks, one for every way in which channels can hang together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.zoo import PaddedBlock


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int | bool) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


class Chain(nn.Module):
    """conv1 - bn1 - conv2 - fc: nothing but consecutive layers."""

    def __init__(self, first: int = 6, second: int = 5) -> None:
        super().__init__()
        self.conv1 = conv(3, first, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = conv(first, second)
        self.fc = nn.Linear(second, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = conv(width, inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Residual(nn.Module):
    """One stream, written by the stem and both blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.a, self.b = Block(4, 6), Block(4, 5)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(F.relu(self.stem(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Concat(nn.Module):
    """left and right are read by one layer, right behind left."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(3, 4), conv(3, 3)
        self.join = conv(7, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.fc(F.relu(self.join(x)).mean((2, 3)))  # type: ignore[no-any-return]


class ConcatOntoStream(nn.Module):
    """Two narrow layers side by side are added to a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.wide = conv(3, 4), conv(3, 3), conv(3, 7)
        self.join = conv(7, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1) + self.wide(x))
        return self.fc(F.relu(self.join(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """Expand, depthwise, project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.expand, self.bn1 = conv(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.dw, self.bn2 = conv(6, 6, groups=6, bias=False), nn.BatchNorm2d(6)
        self.project = conv(6, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu6(self.bn2(self.dw(F.relu6(self.bn1(self.expand(x))))))
        return self.fc((x + self.project(inner)).mean((2, 3)))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """A convolution in two channel groups: a position is a channel of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 8)
        self.conv2 = conv(8, 6, groups=2)
        self.conv3 = conv(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Multiplier(nn.Module):
    """A depthwise convolution that makes two channels of each, and one that makes one of two."""

    def __init__(self, outputs: int = 8) -> None:
        super().__init__()
        self.conv1 = conv(3, 4 if outputs == 8 else 8)
        self.dw = conv(4 if outputs == 8 else 8, outputs, groups=4)
        self.conv2 = conv(outputs, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.dw(F.relu(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Flatten(nn.Module):
    """Every channel owns 2 x 3 inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 4)
        self.fc1, self.fc2 = nn.Linear(24, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


class Padded(nn.Module):
    """CIFAR ResNet blocks with shortcuts padded by zeros (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 4, bias=False), nn.BatchNorm2d(4)
        self.a, self.b = PaddedBlock(4, 4, 1), PaddedBlock(4, 8, 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 6)
        self.reduce, self.expand = conv(6, 3, 1), conv(3, 6, 1)
        self.after = conv(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Split(nn.Module):
    """Both halves of one layer go to layers of their own, called in either order."""

    def __init__(self, *, backwards: bool = False) -> None:
        super().__init__()
        self.conv = conv(3, 8)
        self.a, self.b = conv(4, 5), conv(4, 5)
        self.fc = nn.Linear(5, 3)
        self.backwards = backwards

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.conv(x)).chunk(2, 1)
        if self.backwards:
            x = self.b(second)
            x = x + self.a(first)
        else:
            x = self.a(first)
            x = x + self.b(second)
        return self.fc(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


class UnevenSplit(nn.Module):
    """split() with sizes 3 and 5, put together again the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 8)
        self.after = conv(8, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.conv(x)).split([3, 5], 1)
        return self.fc(F.relu(self.after(torch.cat([second, first], 1))).mean((2, 3)))  # type: ignore[no-any-return]


class NormMLP(nn.Module):
    """Linear layers on tokens, with a normalisation over the features between them."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(6, 8), norm(8)
        self.fc2, self.fc3 = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc2(F.gelu(self.norm(self.fc1(x)))))
        return self.fc3(x.mean(1))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A bare parameter scales the branch, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.branch = conv(6, 6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc((x + self.scale * self.branch(x)).mean((2, 3)))  # type: ignore[no-any-return]


class WithPReLU(nn.Module):
    """One slope for all channels, then a slope for each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = conv(3, 5), nn.PReLU()
        self.conv2, self.act2 = conv(5, 6), nn.PReLU(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Transposed(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(3, 4)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups)
        self.conv2 = conv(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.up(F.relu(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(2, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.conv2 = nn.Conv1d(5, 4, 3, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean(2))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Convolutions, and a recurrent layer over what they make of each place."""

    def __init__(self, make: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 8, 3, padding=1)
        self.steps = make(8, 4, **options)
        self.fc = nn.Linear(8 if self.steps.bidirectional else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        first = self.steps.batch_first
        made, _ = self.steps(x.permute(0, 2, 1) if first else x.permute(2, 0, 1))
        return self.fc(made.mean(1 if first else 0))  # type: ignore[no-any-return]


class StepByStep(nn.Module):
    """A cell that goes along a sequence, over rows of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.cell, self.fc = nn.LSTMCell(5 * 3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x))).flatten(1, 2)
        h = c = x.new_zeros(len(x), 4)
        for step in range(x.shape[2]):
            h, c = self.cell(x[:, :, step], (h, c))
        return self.fc(h)  # type: ignore[no-any-return]


class Auxiliary(Chain):
    """A second head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x) + self.aux(self.conv1(x).mean((2, 3)))  # type: ignore[no-any-return]
        return super().forward(x)


class CalledTwice(nn.Module):
    """One module is called twice: its outputs are its own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = conv(3, 5), conv(5, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class TiedWeights(nn.Module):
    """Two modules hold one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 5), conv(5, 5), conv(5, 5)
        self.b.weight = self.a.weight
        self.after = conv(5, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class PlainNorms(nn.Module):
    """Normalisations without a parameter, and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(3, 5), nn.BatchNorm2d(5, affine=False)
        self.conv2, self.norm2 = conv(5, 6), nn.InstanceNorm2d(6)
        self.conv3, self.norm3 = conv(6, 8), nn.GroupNorm(2, 8)
        self.conv4 = conv(8, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        x = F.relu(self.conv4(F.relu(self.norm3(self.conv3(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class TrackedInstanceNorm(nn.Module):
    """InstanceNorm with running statistics, which nothing in torch_pruning cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = conv(3, 5), nn.InstanceNorm2d(5, affine=True, track_running_stats=True)
        self.conv2 = conv(5, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class WideLayerNorm(nn.Module):
    """LayerNorm over channels, height and width together."""

    def __init__(self, *, affine: bool = False) -> None:
        super().__init__()
        self.conv1, self.norm = conv(3, 6), nn.LayerNorm([6, 6, 6], elementwise_affine=affine)
        self.conv2 = conv(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class FixedShape(nn.Module):
    """The width is written into forward: right maps, but no channel may go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6), conv(6, 5), conv(5, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x.reshape(-1, 6, x.shape[2], x.shape[3])))
        return self.fc(F.relu(self.conv3(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """A layer two channels wide: no permutation can tell its map from the swapped one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 2), conv(2, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Two heads of three channels, their queries, keys and values made by one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 18), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 3).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(len(x), -1, 6))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Patches and a class token, one block of attention and MLP, its head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 10, 8))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(8), Attention(8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Shifted windows of tokens with an MLP in each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = conv(3, 5)
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, _, _, c = x.shape
        y = F.pad(torch.roll(x, (1, 1), (1, 2)), (0, 0, 0, 2, 0, 2))
        y = y.view(n, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 16, c)
        y = self.fc2(F.gelu(self.fc1(y)))
        y = y.view(n, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, c)[:, :6, :6]
        return self.head((x + torch.roll(y, (-1, -1), (1, 2))).mean((1, 2)))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """One MLP mixes places, the next one channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = conv(3, 6), nn.LayerNorm(6)
        self.places1, self.places2 = nn.Linear(36, 4), nn.Linear(4, 36)
        self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places2(F.gelu(self.places1(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class GatedLinear(nn.Module):
    """One half of a layer's outputs scales the other: a position is a channel of each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(6, 10), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.fc1(x).chunk(2, -1)
        return self.head(F.gelu(self.fc2(one * F.silu(other))).mean(1))  # type: ignore[no-any-return]


class GatedConvolutions(nn.Module):
    """The same by one operation, over the channels of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 10), conv(5, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.conv2(F.glu(self.conv1(x), 1)), 1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """Half of the channels pass by the other half's block; then all are shuffled, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner1, self.inner2 = conv(3, 8), conv(4, 5, 1), conv(5, 4, 1)
        self.after, self.fc = conv(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([one, self.inner2(F.relu(self.inner1(other)))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class SelectiveKernel(nn.Module):
    """Two branches side by side, each channel of each with a weight of its own, are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.weigh = conv(3, 6), conv(3, 6, 5), nn.Linear(6, 12)
        self.after = conv(6, 5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        weights = self.weigh(x.sum(1).mean((2, 3))).reshape(-1, 2, 6, 1, 1).softmax(1)
        return self.fc(F.relu(self.after((x * weights).sum(1))).mean((2, 3)))  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1 but for a gain of its own, which starts at zero, as in NFNets."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.gain = nn.Parameter(torch.zeros(outputs, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, len(self.weight), -1)
        rows = F.batch_norm(rows, None, None, weight=self.gain.flatten(), training=True)
        return F.conv2d(input, rows.reshape(self.weight.shape), self.bias, padding=self.padding)


class NormFree(nn.Module):
    """Standardised filters in place of normalised channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv(3, 6), Standardised(6, 8, 3), Standardised(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class PixelShuffled(nn.Module):
    """Four channels become one of four times the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.fc = conv(3, 16), conv(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.after(F.pixel_shuffle(self.conv(x), 2)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Network(NamedTuple):
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETWORKS: dict[str, Network] = {
    "chain": Network(Chain, (3, 6, 6)),
    "residual": Network(Residual, (3, 6, 6)),
    "concat": Network(Concat, (3, 6, 6)),
    "concat_onto_stream": Network(ConcatOntoStream, (3, 6, 6)),
    "depthwise": Network(Depthwise, (3, 6, 6)),
    "grouped": Network(Grouped, (3, 6, 6)),
    "multiplier": Network(Multiplier, (3, 6, 6)),
    "divider": Network(lambda: Multiplier(4), (3, 6, 6)),
    "flatten": Network(Flatten, (2, 4, 6)),
    "padded": Network(Padded, (3, 6, 6)),
    "squeeze_excite": Network(SqueezeExcite, (3, 6, 6)),
    "split": Network(Split, (3, 6, 6)),
    "split_backwards": Network(lambda: Split(backwards=True), (3, 6, 6)),
    "uneven_split": Network(UnevenSplit, (3, 6, 6)),
    "norm_mlp": Network(NormMLP, (7, 6)),
    "rms_mlp": Network(lambda: NormMLP(nn.RMSNorm), (7, 6)),
    "layer_scale": Network(LayerScale, (3, 6, 6)),
    "prelu": Network(WithPReLU, (3, 6, 6)),
    "transposed": Network(Transposed, (3, 6, 6)),
    "grouped_transposed": Network(lambda: Transposed(2), (3, 6, 6)),
    "one_dimensional": Network(OneDimensional, (2, 12)),
    "lstm": Network(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (2, 7)),
    "gru": Network(lambda: Recurrent(nn.GRU, batch_first=True, bias=False), (2, 7)),
    "cells": Network(StepByStep, (1, 3, 5)),
    "auxiliary": Network(Auxiliary, (3, 6, 6)),
    "called_twice": Network(CalledTwice, (3, 6, 6)),
    "tied_weights": Network(TiedWeights, (3, 6, 6)),
    "plain_norms": Network(PlainNorms, (3, 6, 6)),
    "tracked_instance_norm": Network(TrackedInstanceNorm, (3, 6, 6)),
    "wide_layer_norm": Network(WideLayerNorm, (3, 6, 6)),
    "wide_layer_norm_affine": Network(lambda: WideLayerNorm(affine=True), (3, 6, 6)),
    "fixed_shape": Network(FixedShape, (3, 6, 6)),
    "pair": Network(Pair, (3, 6, 6)),
    "transformer": Network(Transformer, (3, 6, 6)),
    "windows": Network(Windows, (3, 6, 6)),
    "gated": Network(GatedLinear, (7, 6)),
    "gated_convolutions": Network(GatedConvolutions, (3, 6, 6)),
    "shuffled": Network(Shuffled, (3, 6, 6)),
    "selective_kernel": Network(SelectiveKernel, (3, 6, 6)),
    "pixel_shuffled": Network(PixelShuffled, (3, 6, 6)),
}
"""Every tiny network by name."""


def build(name: str, *, seed: int = 2) -> nn.Module:
    """A network in eval mode, its normalisations set to something that is not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name].build()
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                if layer.weight is not None:
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    if not isinstance(layer, nn.RMSNorm):
                        nn.init.normal_(layer.bias, 0, 0.3)
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    assert layer.running_mean is not None and layer.running_var is not None
                    nn.init.normal_(layer.running_mean, 0, 0.2)
                    nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def images(name: str, count: int = 2, *, seed: int = 1) -> Tensor:
    """Inputs of that network, standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *NETWORKS[name].shape, generator=generator)
