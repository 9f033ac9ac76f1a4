"""A fault of our own comes out as what it is: it is not passed off as a damaged file or a bad builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from torch import nn

from mint_compress.checkpoints import (
    identifying,
    reading,
    rebuilding,
    recognising,
    whole_modules,
    wrappings,
)
from mint_compress.checkpoints.loading import load, load_model
from mint_compress.checkpoints.pickle_scan import Recipe
from mint_compress.errors import MintError
from mint_compress.zoo import BUILDERS

FAULTS = (TypeError, AttributeError, AssertionError, KeyError, IndexError, RuntimeError, ValueError)


def weights(path: Path) -> None:
    torch.save(BUILDERS["mlp"]().state_dict(), path)


def whole(path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


def ours(path: Path) -> None:
    hostile.own(path)


PLACES: dict[str, tuple[Any, str, Callable[[Path], None]]] = {
    "following a pickle": (Recipe, "_move", weights),
    "unwrapping": (wrappings, "_state_dict", weights),
    "checking tensors": (reading, "check_storage", weights),
    "identifying": (identifying, "_classes", weights),
    "filling": (identifying, "set_tensors_", weights),
    "checking a module": (whole_modules, "_check_part", whole),
    "recognising a module": (recognising.fingerprints, "candidates", whole),
    "settings of a module": (whole_modules, "_is_size", whole),
    "sizes from a header": (rebuilding, "set_shapes_", ours),
    "ties from a header": (rebuilding, "set_tensors_", ours),
    "the permission of a builder": (rebuilding, "permitted", ours),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_comes_out(
    place: str, fault: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, name, write = PLACES[place]
    write(tmp_path / "a")
    assert load_model(tmp_path / "a")

    def fails(*args: object, **kwargs: object) -> None:
        raise fault("a fault of ours")

    monkeypatch.setattr(holder, name, fails)
    with pytest.raises(fault, match="a fault of ours") as caught:
        load_model(tmp_path / "a")
    assert not isinstance(caught.value, MintError)


def test_what_a_builder_raises_is_its_own_fault(tmp_path: Path) -> None:
    hostile.own(tmp_path / "a")

    def fails() -> nn.Module:
        raise TypeError("no width")

    with pytest.raises(MintError, match=r"The builder failed .*: TypeError: no width"):
        load(tmp_path / "a", builder=fails)
    with pytest.raises(MintError, match="The builder returned a list"):
        load(tmp_path / "a", builder=list)  # type: ignore[arg-type]
