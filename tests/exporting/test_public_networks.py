"""Public networks in each runtime: every weight is counted, and the outputs are PyTorch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mint_compress.exporting.parity import check_parity
from mint_compress.exporting.protocol import export, find_exporter
from mint_compress.exporting.receipt_export import check_export

RUNTIMES = {".xml": "openvino", ".pte": "executorch"}
NETWORKS = {"resnet18": 64, "mobilenet_v2": 64, "convnext_tiny": 64, "vit_b_16": 224, "swin_t": 64}
"""Name in torchvision -> pixels."""


def drawn(name: str) -> nn.Module:
    """The network with random weights, and statistics of normalisation that matter."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network: nn.Module = models.get_model(name, num_classes=7).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # the head of a vision transformer begins at zero
            nn.init.normal_(parameter, std=0.02)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", RUNTIMES)
def test_it_is_counted_and_agrees(suffix: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(RUNTIMES[suffix], reason=f"pip install 'mint-compress[{RUNTIMES[suffix]}]'")
    network, pixels = drawn(name), NETWORKS[name]
    made = export(network, torch.randn(2, 3, pixels, pixels), tmp_path / f"a{suffix}")
    assert check_export(network, made.traced, made.tensors) == sum(p.numel() for p in network.parameters())
    session = find_exporter(made.path).open(made.path, device="cpu")
    assert check_parity(network, session, torch.randn(7, 3, pixels, pixels)).max_rel < 1e-5
