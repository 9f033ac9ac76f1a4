"""What the outputs of an ONNX file are called; they stay in the order in which parity compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from mint_compress.exporting.parity import check_parity
from mint_compress.exporting.protocol import export, find_exporter

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    """A named tuple of tensors."""

    mask: torch.Tensor
    edge: torch.Tensor


class Heads(nn.Module):
    """Three heads, returned as ``form`` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.stem, self.mask, self.edge = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 1, 1)

    def forward(self, image: torch.Tensor) -> Any:
        hidden = self.stem(image).relu()
        mask, edge = self.mask(hidden), self.edge(hidden).sigmoid()
        forms: dict[str, Any] = {
            "alone": mask,
            "dict": {"mask": mask, "edge": edge},
            "tuple": (mask, edge),
            "named tuple": Pair(mask, edge),
            "nested": {"out": {"mask": mask, "edge": edge}, "all": [hidden, edge + 1]},
            "with none": {"loss": None, "edge": edge, "mask": mask},
            "after layers": {"relu": mask, "conv2d": edge, "image": hidden, "stem.weight": hidden + 1},
            "same joined": {"a": {"b": mask}, "a_b": edge},
            "of numbers": {3: mask, 5: edge},
        }
        return forms[self.form]


NAMES = {
    "alone": ["output"],
    "dict": ["mask", "edge"],
    "tuple": ["output_0", "output_1"],
    "named tuple": ["mask", "edge"],
    "nested": ["out_mask", "out_edge", "all_0", "all_1"],
    "with none": ["edge", "mask"],
    # what is called so inside gives way, an input and a weight do not
    "after layers": ["relu", "conv2d", "image_", "stem.weight_"],
    "same joined": ["a_b", "a_b_"],
    "of numbers": ["output_3", "output_5"],
}


@pytest.mark.parametrize("form", NAMES)
def test_outputs_are_called_as_in_what_the_network_returns(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    model = Heads(form).eval()
    export(model, (IMAGES,), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [item.name for item in session.get_outputs()] == NAMES[form]
    assert [item.name for item in session.get_inputs()] == ["image"]
    parity = check_parity(model, find_exporter(tmp_path / "a.onnx").open(tmp_path / "a.onnx"), IMAGES)
    assert parity.max_rel < 1e-5


def test_each_name_has_its_own_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Heads("nested").eval()
    export(model, (IMAGES,), tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    out_edge, all_1 = session.run(["out_edge", "all_1"], {"image": IMAGES.numpy()})
    with torch.no_grad():
        expected = model(IMAGES)["out"]["edge"].numpy()
    np.testing.assert_allclose(out_edge, expected, atol=1e-6)
    np.testing.assert_allclose(all_1, expected + 1, atol=1e-6)
