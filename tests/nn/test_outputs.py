"""Tensors in what a network returns, however it is nested."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch

from mint_compress.errors import MintError
from mint_compress.nn.io import first_tensor, tensors_in

ONE, TWO, THREE = (torch.full((1,), float(k)) for k in (1, 2, 3))


@dataclass
class Named:
    """As networks return that name their outputs."""

    loss: torch.Tensor
    parts: list[torch.Tensor | None]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ONE, [1]),
        ([TWO, "name", (ONE, None)], [2, 1]),
        ({"z": THREE, "a": [ONE, {"deep": TWO}]}, [3, 1, 2]),
        (UserDict(logits=TWO, loss=ONE), [2, 1]),
        (Named(loss=ONE, parts=[THREE, None]), [1, 3]),
        ([1, 2], []),
    ],
)
def test_every_tensor_in_order(output: object, expected: list[int]) -> None:
    assert [int(tensor) for tensor in tensors_in(output)] == expected


def test_the_logits_are_the_first() -> None:
    assert first_tensor({"logits": TWO, "aux": ONE}) is TWO
    assert first_tensor((None, [THREE], ONE)) is THREE
    with pytest.raises(MintError, match="returns a dict without a tensor; logits are needed"):
        first_tensor({"loss": 1.0})
