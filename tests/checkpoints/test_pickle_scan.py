"""What a pickle would call is known before it is done; what it may hold beyond tensors is kept."""

import os
from functools import partial

import hostile as files
import numpy as np
import pytest
import torch
from checkpoint_files import refuse, same, small
from torch import nn

from mint_compress.checkpoints.reading import read_checkpoint

FROM_TYPE = files.Named("torch._tensor", "_rebuild_from_type_v2")
LINEAR = files.Named("torch.nn.modules.linear", "Linear")
ANY_TENSOR = files.Named("torch", "Tensor")


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("torch.nn.modules.linear.Linear", (LINEAR, 2, 2, b"\x86R")),
        ("torch.nn.modules.linear.Linear", (LINEAR, 2, 2, b"\x86\x81")),
        # through the memo
        ("torch.nn.modules.linear.Linear", (b"}", "a", LINEAR, b"q\x01s", "b", b"h\x01", 2, 2, b"\x86Rs")),
        (
            "torch.nn.modules.linear.Linear",
            (
                files.Named("torch._tensor", "_rebuild_from_type_v2"),
                b"(",
                LINEAR,
                ANY_TENSOR,
                2,
                2,
                b"\x86}tR",
            ),
        ),
        ("torch.nn.functional.relu", (files.Named("torch.nn.functional", "relu"), 2, b"\x85R")),
        ("torch.Tensor", (ANY_TENSOR, 2, b"\x85R")),
        ("torch.nn.parameter.Parameter", (files.Named("torch.nn.parameter", "Parameter"), b")\x81")),
        ("builtins.bytearray", (files.Named("builtins", "bytearray"), 2, b"\x85R")),
        ("collections.Counter", (files.Named("collections", "Counter"), b"}\x85R")),
    ],
)
def test_what_is_allowed_is_not_called_with_any_arguments(tmp_path, name, steps):
    (tmp_path / "a.pt").write_bytes(files.archive(files.steps(*steps)))
    refuse(tmp_path / "a.pt", f"asks to run {name}, so it was not read")


@pytest.mark.parametrize(
    ("elements", "offset", "size", "stride", "good"),
    [
        (10, 0, (2, 5), (5, 1), True),
        (10, 4, (2, 3), (3, 1), True),
        (10, 3, (2, 2), (5, 1), True),
        (10, 0, (0, 99), (99, 1), True),
        (11, 0, (2, 5), (5, 1), False),
        (10, 0, (2, 6), (6, 1), False),
        (10, 5, (2, 3), (3, 1), False),
        (10, 0, (2, 2), (9, 1), False),
        (10, -1, (2, 2), (2, 1), False),
        (10, 0, (2, 2), (2,), False),
    ],
)
def test_tensors_lie_within_their_storage(tmp_path, elements, offset, size, stride, good):
    content = {"data/0": np.arange(10, dtype=np.float32).tobytes(), "data/1": bytes(1000)}
    (tmp_path / "a.pt").write_bytes(
        files.archive(files.tensor_steps(elements, offset, size, stride), content)
    )
    if not good:
        refuse(tmp_path / "a.pt", "damaged")
        return
    expected = torch.arange(10.0).as_strided(size, stride, offset)
    same(read_checkpoint(tmp_path / "a.pt").tensors, {"w": expected})


def test_activations_are_kept_and_not_called(tmp_path):
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True).eval()
    torch.save(layer, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").module.activation is nn.functional.gelu


@pytest.mark.parametrize("base", [os.system, print, nn.functional.relu])
def test_partials_are_of_layers_only(tmp_path, base):
    model = small()
    model.norm_layer = partial(base, 1)
    torch.save(model, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "so it was not read")


def test_a_partial_holds_numbers_and_words(tmp_path):
    model = small()
    model.norm_layer = partial(nn.LayerNorm, eps=nn.Linear)
    torch.save(model, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "damaged")
    model.norm_layer = partial(nn.LayerNorm, eps=1e-6)
    torch.save(model, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt").module.norm_layer
    assert (found.func, found.keywords) == (nn.LayerNorm, {"eps": 1e-6})
    assert repr(found(4)) == repr(nn.LayerNorm(4, eps=1e-6))


def test_tensors_with_attributes_in_a_state_dict(tmp_path):
    weight = torch.ones(2)
    weight.no_decay = True
    torch.save({"a": weight, "b": nn.Parameter(torch.ones(3))}, tmp_path / "a.pt")
    assert list(read_checkpoint(tmp_path / "a.pt").tensors) == ["a", "b"]
