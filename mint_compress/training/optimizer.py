"""The optimizer: SGD with Nesterov momentum, and weight decay where there are weights."""

from __future__ import annotations

import torch
from torch import nn

from mint_compress.errors import MintError
from mint_compress.training.hyperparameters import Hyperparameters


def sgd(model: nn.Module, hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
    """SGD on all parameters of a network; biases and normalisation do not decay.

    Raises
    ------
    MintError
        It has none.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise MintError("The network has no parameters to train.")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": hyperparameters.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    momentum = hyperparameters.momentum
    return torch.optim.SGD(groups, lr=hyperparameters.lr, momentum=momentum, nesterov=momentum > 0)
