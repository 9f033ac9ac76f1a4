"""Small things done to networks by hand, for several tests."""

import sys
import textwrap

import torch
from torch import nn


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
