"""Mutated files: whatever becomes of one, the caller sees a network or a MintError, nothing else.

The run is short and always the same. A long one, with other mutations each time:

    MINT_FUZZ_EXAMPLES=1500 python -m pytest tests/test_fuzz_loading.py -n 0

took 65 s of one core (``time`` before it).
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint_compress.checkpoints import HEADER_KEY, read_checkpoint
from mint_compress.errors import MintError
from mint_compress.models import load, load_model
from mint_compress.planning import PruningPlan

EXAMPLES = int(os.environ.get("MINT_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=10_000,  # ms
    suppress_health_check=list(HealthCheck),
)

place = st.floats(0, 1, exclude_max=True)
"""Where in a file, as a share of its length."""

mutation = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(1, 255)),
    st.tuples(st.just("cut"), place, place),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("swap"), place, place),
    st.tuples(st.just("copy"), place, place),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def mutated(content: bytes, mutations: list[tuple[Any, ...]]) -> bytes:
    """``content`` after all ``mutations``; chunks that move have 1 to 64 bytes."""
    for kind, where, value in mutations:
        at = int(where * len(content))
        if kind == "flip" and content:
            content = hostile.flipped(content, at, value)
        elif kind == "cut":
            content = content[:at] + content[at + 1 + int(value**4 * len(content)) :]
        elif kind == "insert":
            content = content[:at] + value + content[at:]
        elif content:
            other, length = int(value * len(content)), 1 + at % 64
            one, two = content[at : at + length], content[other : other + length]
            if kind == "swap" and at + length <= other:
                content = content[:at] + two + content[at + length : other] + one + content[other + length :]
            else:
                content = content[:at] + two + content[at + len(two) :]
    return content


@cache
def seeds() -> dict[str, bytes]:
    """Valid files of every kind that is read."""
    state = hostile.small().state_dict()
    return {
        "zip": hostile.saved({"state_dict": state, "epoch": 3}),
        "legacy": hostile.saved({"state_dict": state, "epoch": 3}, legacy=True),
        "module": hostile.saved(hostile.small()),
        "safetensors": hostile.safetensors(
            {
                "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
                "n": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]},
            },
            bytes(36),
        ),
    }


def survive(read: Callable[[Path], Any], path: Path) -> None:
    """Nothing but a MintError of one printable line may come out of ``read``."""
    try:
        read(path)
    except MintError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000 + len(str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy", "module", "safetensors"])
@fuzz
@given(mutations=st.lists(mutation, min_size=1, max_size=4))
def test_bytes(tmp_path_factory: pytest.TempPathFactory, kind: str, mutations: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / f"{kind}.pt"
    path.write_bytes(mutated(seeds()[kind], mutations))
    survive(load_model if kind == "module" else read_checkpoint, path)


@pytest.mark.parametrize("kind", ["zip", "module"])
@fuzz
@given(mutations=st.lists(mutation, min_size=1, max_size=3))
def test_pickles_whose_checksum_is_right(
    tmp_path_factory: pytest.TempPathFactory, kind: str, mutations: list[Any]
) -> None:
    with zipfile.ZipFile(io.BytesIO(seeds()[kind])) as whole:
        members = {name.partition("/")[2]: whole.read(name) for name in whole.namelist()}
    path = tmp_path_factory.getbasetemp() / f"{kind}.pt"
    path.write_bytes(hostile.archive(mutated(members.pop("data.pkl"), mutations), members))
    survive(load_model, path)


@fuzz
@given(mutations=st.lists(mutation, min_size=1, max_size=3))
def test_our_own_files(tmp_path_factory: pytest.TempPathFactory, mutations: list[Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    valid = folder / "valid.safetensors"
    if not valid.exists():
        hostile.own(valid)
    model, content = load(valid), valid.read_bytes()
    path = folder / "own.safetensors"
    # 9 kB of weights behind 1 kB of header: most mutations go to the header
    length = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(mutated(content[:length], mutations) + content[length:])
    try:
        again = load(path)
    except MintError:
        return
    # what is not refused is what was saved, whatever the header's mutation did
    assert repr(again) == repr(model)
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in model.state_dict().items())


@fuzz
@given(
    key=st.sampled_from(
        ["format", "builder", "input_shape", "shapes", "ties", "plan", "name", "kwargs", "in"]
    ),
    value=json_values,
)
def test_our_own_headers_whose_checksum_is_right(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    valid, path = folder / "valid.safetensors", folder / "header.safetensors"
    if not valid.exists():
        hostile.own(valid)
    change = {
        "name": {"builder": {"name": value, "kwargs": {}}},
        "kwargs": {"builder": {"name": "zoo:mlp", "kwargs": value}},
        "in": {"shapes": {"layers.0": {"in_features": value}}},
    }.get(key, {key: value})
    hostile.rewrite(valid, path, change)
    survive(load_model, path)


@fuzz
@given(mutations=st.lists(mutation, min_size=1, max_size=4), value=json_values)
def test_plans(mutations: list[Any], value: Any) -> None:
    layer = {"layer": "a", "kind": "Linear", "side": "out", "dim": 0, "total": 4, "removed": [1]}
    plan = {
        **{"format": 1, "asked": 0.5, "removed": 0.5, "parameters": [8, 4], "macs": [8, 4]},
        **{"groups": [{"group": "a", "kept": [0], "removed": [1]}], "cuts": [layer]},
        "layers": {"a": [8, 4]},
    }
    assert PruningPlan.from_json(json.dumps(plan)).parameters == (8, 4)
    texts = [mutated(json.dumps(plan).encode(), mutations).decode(errors="replace")]
    texts += [json.dumps({**plan, key: value}) for key in plan]
    for text in texts:
        try:
            PruningPlan.from_json(text)
        except MintError as error:
            assert "\n" not in str(error)


def test_the_seeds_are_valid(tmp_path: Path) -> None:
    # or their mutations would test nothing
    for kind, content in seeds().items():
        (tmp_path / kind).write_bytes(content)
        assert read_checkpoint(tmp_path / kind)
    assert HEADER_KEY in hostile.own(tmp_path / "a").read_bytes().decode(errors="replace")
