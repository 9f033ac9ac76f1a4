"""What the tests of reading and writing files share."""

import pytest
import torch
from torch import nn

from mint_compress.checkpoints.reading import read_checkpoint
from mint_compress.errors import MintError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).eval()


def refuse(path, match=None, **kwargs):
    with pytest.raises(MintError, match=match) as caught:
        read_checkpoint(path, **kwargs)
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def same(tensors, state):
    assert list(tensors) == list(state)
    for key, tensor in state.items():
        assert torch.equal(tensors[key], tensor), key
