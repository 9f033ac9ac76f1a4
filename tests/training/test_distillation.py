"""The loss against values by hand."""

import math

import pytest
import torch

from mint_compress.training.distillation import distillation_loss


def test_distillation_loss_against_hand_values() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    labels = torch.tensor([0])
    plain = distillation_loss(logits, labels, None, smoothing=0, temperature=4, weight=0.7)
    assert float(plain) == pytest.approx(-math.log(0.75))
    smooth = distillation_loss(logits, labels, None, smoothing=0.1, temperature=4, weight=0)
    assert float(smooth) == pytest.approx(-0.95 * math.log(0.75) - 0.05 * math.log(0.25))
    taught = torch.zeros(1, 2)
    mixed = distillation_loss(logits * 2, labels, taught, smoothing=0, temperature=2, weight=0.25)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(mixed) == pytest.approx(0.75 * -math.log(0.9) + 0.25 * 4 * divergence)
