"""Multiply-accumulate operations: by hand, against PyTorch's own counter, and where they are done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from networks import NETWORKS, build, images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mint_compress.errors import ForeignError
from mint_compress.nn.counting import Macs, layer_macs, module_macs


class Encoder(nn.Module):
    """A block of a vision transformer, its attention computed by nn.MultiheadAttention."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class ByFunctions(nn.Module):
    """A linear layer and a convolution that are never called, and keys of another width than values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 5)
        self.conv = nn.Conv1d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.q.weight, self.q.bias), self.k(x), self.v(x)
        x = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return F.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias, padding=1)


class Products(nn.Module):
    """Products in no layer and in no module but the network itself."""

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bnc,bmc->bnm", x, x)
        return torch.baddbmm(x, scores, x) @ x.new_ones(x.shape[-1], 2)


class Inference(nn.Module):
    """In inference mode composite operations are not taken apart before they are seen."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, x.new_ones(4, x.shape[-1]))[:, None]
        return F.scaled_dot_product_attention(x, x, x)


class Adapted(nn.Linear):
    """A linear layer with a product of its own beside, of rank 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(inputs, 2)), nn.Parameter(torch.randn(2, outputs))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down @ self.up


def timm_attention(fused: bool) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    attention: nn.Module = layers.Attention(12, 3)
    attention.fused_attn = fused
    return attention


def tokens(batch: int, width: int) -> Tensor:
    return torch.randn(batch, 7, width, generator=torch.Generator().manual_seed(0))


def halved_flops(module: nn.Module, x: Tensor) -> float:
    """What PyTorch counts for one sample, with attention taken apart: it has no formula for the CPU's."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_block_of_multi_head_attention_by_hand(batch: int) -> None:
    n, d, inner = 7, 8, 32
    macs = module_macs(Encoder().eval(), tokens(batch, d))
    assert macs == Macs(
        layers={"fc1": n * d * inner, "fc2": n * inner * d},
        uncalled={"attention.out_proj": n * d * d},
        # queries, keys and values, then each token with each, twice
        products={"attention": n * d * 3 * d + 2 * n * n * d},
    )
    assert macs.total == n * (12 * d * d + 2 * n * d)


def test_weights_of_layers_that_are_not_called() -> None:
    macs = module_macs(ByFunctions().eval(), tokens(2, 6))
    assert macs.layers == {"k": 7 * 6 * 4, "v": 7 * 6 * 5}
    assert macs.uncalled == {"q": 7 * 6 * 4, "conv": 7 * 5 * 3 * 3}
    assert macs.products == {"": 7 * 7 * 4 + 7 * 7 * 5}


def test_a_product_inside_of_a_layer_is_not_the_layers_own() -> None:
    model = nn.Sequential(Adapted(6, 5)).eval()
    macs = module_macs(model, tokens(2, 6))
    assert macs.layers == {"0": 7 * 6 * 5}
    assert macs.products == {"0": 7 * (6 * 2 + 2 * 5)}
    assert macs.total == halved_flops(model, tokens(2, 6))


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (Encoder, 8),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), 8),
        (lambda: timm_attention(True), 12),
        (lambda: timm_attention(False), 12),
        (ByFunctions, 6),
        (Products, 6),
        (Inference, 6),
    ],
    ids=["multihead", "encoder", "timm fused", "timm", "functions", "products", "inference"],
)
def test_all_of_it_is_half_of_the_flops(make: Callable[[], nn.Module], width: int) -> None:
    model = make().eval()
    macs = module_macs(model, tokens(2, width))
    assert macs.products and macs.total == halved_flops(model, tokens(2, width))


def test_a_vision_transformer_is_half_of_the_flops() -> None:
    from torchvision.models import VisionTransformer

    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    model, x = VisionTransformer(image_size=16, patch_size=4, **sizes).eval(), torch.randn(2, 3, 16, 16)
    macs = module_macs(model, x)
    assert macs.total == halved_flops(model, x)
    # 16 patches and the class token
    assert set(macs.products.values()) == {17 * 8 * 24 + 2 * 17 * 17 * 8}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_attention_has_products(name: str) -> None:
    model, x = build(name), images(name)
    macs = module_macs(model, x)
    assert macs.layers == layer_macs(model, x)
    # PyTorch has no formula for the LSTM that its CPU computes in one
    fused = 7 * 2 * 2 * (16 * 8 + 16 * 4) if name == "lstm" else 0
    assert macs.total == halved_flops(model, x) + fused
    assert macs.uncalled == {}
    # ten tokens, two heads of three channels
    assert macs.products == ({"attention": 2 * 10 * 10 * 6} if name == "transformer" else {})


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


class Careful(nn.Module):
    """A module that fails, and is done without."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = Failing()

    def forward(self, x: Tensor) -> Tensor:
        with suppress(RuntimeError):
            x = self.failing(x)
        return x @ x.transpose(1, 2)


def test_nothing_is_left_behind() -> None:
    assert module_macs(Careful(), tokens(2, 6)).products == {"": 7 * 7 * 6}
    model = nn.Sequential(Encoder(), Failing())
    model[0].train()
    with pytest.raises(ForeignError, match="RuntimeError: no"):
        module_macs(model, tokens(2, 8))
    assert torch.backends.mha.get_fastpath_enabled()
    assert [m.training for m in model.modules()][1:3] == [True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
