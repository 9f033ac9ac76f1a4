"""Small things done to networks by hand, for several tests."""

import copy
import sys
import textwrap

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.surgery.pruning_plan import PruningPlan


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


class KeptNorm(nn.Module):
    """Normalises over the kept channels only; the others come out as zeros."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, gone: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.dim = norm, 1 if isinstance(norm, nn.GroupNorm) else -1
        self.kept = torch.tensor([c for c in range(len(norm.weight)) if c not in gone])

    def forward(self, x: Tensor) -> Tensor:
        some, norm = x.index_select(self.dim, self.kept), self.norm
        weight = norm.weight[self.kept]
        if isinstance(norm, nn.RMSNorm):
            some = F.rms_norm(some, [len(self.kept)], weight, norm.eps)
        elif isinstance(norm, nn.GroupNorm):
            some = F.group_norm(some, norm.num_groups, weight, norm.bias[self.kept], norm.eps)
        else:
            some = F.layer_norm(some, [len(self.kept)], weight, norm.bias[self.kept], norm.eps)
        return torch.zeros_like(x).index_copy(self.dim, self.kept, some)


def ignoring(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """The whole network, whose layers do not read the channels that the plan removes."""
    model = copy.deepcopy(model)
    for cut in plan.cuts:
        layer = model if cut.kind == "parameter" else model.get_submodule(cut.layer)
        if cut.side != "in":
            if isinstance(layer, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
                model.set_submodule(cut.layer, KeptNorm(layer, cut.removed))
            continue
        if cut.kind == "recurrent":
            for name, parameter in layer.named_parameters():
                if name in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
                    parameter.data[:, list(cut.removed)] = 0
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        for channel in cut.removed:
            if isinstance(layer, nn.ConvTranspose2d):
                weight.data[channel] = 0
            elif isinstance(layer, nn.Conv2d):
                inside = cut.total // layer.groups  # a channel is read by the filters of its own group
                outside = layer.out_channels // layer.groups
                first = channel // inside * outside
                weight.data[first : first + outside, channel % inside] = 0
            else:
                weight.data[:, channel] = 0
    return model
