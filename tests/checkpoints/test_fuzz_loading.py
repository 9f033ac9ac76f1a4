"""Mutated files: whatever becomes of one, the caller sees a network or a MintError, nothing else.

Nine tests fuzz for ``MINT_FUZZ_SECONDS`` each, 1 by default. They go through the same rounds of mutations in
the same order; the time only says how far they get.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mint_compress.checkpoints.headers import HEADER_KEY
from mint_compress.checkpoints.loading import load, load_model
from mint_compress.checkpoints.reading import read_checkpoint
from mint_compress.errors import MintError
from mint_compress.surgery.pruning_plan import PruningPlan

SECONDS = float(os.environ.get("MINT_FUZZ_SECONDS", "1"))
a_round = settings(
    max_examples=50,
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


def fuzz(check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Call ``check`` with round after round of drawn values until the time is up."""
    end = time.monotonic() + SECONDS
    for number in count():
        if number and time.monotonic() > end:
            return
        seed(number)(a_round(given(**strategies)(check)))()


def survive(read: Callable[[Path], Any], path: Path) -> None:
    """Nothing but a MintError of one printable line may come out of ``read``."""
    try:
        read(path)
    except MintError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000 + len(str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy", "module", "safetensors"])
def test_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.pt"

    def check(mutations: list[Any]) -> None:
        path.write_bytes(mutated(seeds()[kind], mutations))
        survive(load_model if kind == "module" else read_checkpoint, path)

    fuzz(check, mutations=st.lists(mutation, min_size=1, max_size=4))


@pytest.mark.parametrize("kind", ["zip", "module"])
def test_pickles_whose_checksum_is_right(tmp_path: Path, kind: str) -> None:
    with zipfile.ZipFile(io.BytesIO(seeds()[kind])) as whole:
        members = {name.partition("/")[2]: whole.read(name) for name in whole.namelist()}
    pickled, path = members.pop("data.pkl"), tmp_path / f"{kind}.pt"
    # or the mutations would never be looked at
    path.write_bytes(hostile.archive(pickled, members))
    assert read_checkpoint(path)

    def check(mutations: list[Any]) -> None:
        path.write_bytes(hostile.archive(mutated(pickled, mutations), members))
        survive(load_model, path)

    fuzz(check, mutations=st.lists(mutation, min_size=1, max_size=3))


def test_our_own_files(tmp_path: Path) -> None:
    valid, path = hostile.own(tmp_path / "valid.safetensors"), tmp_path / "own.safetensors"
    model, content = load(valid), valid.read_bytes()
    # 9 kB of weights behind 1 kB of header: most mutations go to the header
    length = 8 + int.from_bytes(content[:8], "little")

    def check(mutations: list[Any]) -> None:
        path.write_bytes(mutated(content[:length], mutations) + content[length:])
        try:
            again = load(path)
        except MintError:
            return
        # what is not refused is what was saved, whatever the header's mutation did
        assert repr(again) == repr(model)
        assert all(torch.equal(t, again.state_dict()[k]) for k, t in model.state_dict().items())

    fuzz(check, mutations=st.lists(mutation, min_size=1, max_size=3))


def test_our_own_headers_whose_checksum_is_right(tmp_path: Path) -> None:
    valid, path = hostile.own(tmp_path / "valid.safetensors"), tmp_path / "header.safetensors"

    def check(key: str, value: Any) -> None:
        change = {
            "name": {"builder": {"name": value, "kwargs": {}}},
            "kwargs": {"builder": {"name": "zoo:mlp", "kwargs": value}},
            "in": {"shapes": {"layers.0": {"in_features": value}}},
        }.get(key, {key: value})
        hostile.rewrite(valid, path, change)
        survive(load_model, path)

    keys = ["format", "builder", "input_shape", "shapes", "ties", "plan", "name", "kwargs", "in"]
    fuzz(check, key=st.sampled_from(keys), value=json_values)


def test_plans() -> None:
    layer = {"layer": "a", "kind": "Linear", "side": "out", "dim": 0, "total": 4, "removed": [1]}
    plan = {
        **{"format": 1, "asked": 0.5, "removed": 0.5, "parameters": [8, 4], "macs": [8, 4]},
        **{"groups": [{"group": "a", "kept": [0], "removed": [1]}], "cuts": [layer]},
        "layers": {"a": [8, 4]},
    }
    assert PruningPlan.from_json(json.dumps(plan)).parameters == (8, 4)

    def check(mutations: list[Any], value: Any) -> None:
        texts = [mutated(json.dumps(plan).encode(), mutations).decode(errors="replace")]
        texts += [json.dumps({**plan, key: value}) for key in plan]
        for text in texts:
            try:
                PruningPlan.from_json(text)
            except MintError as error:
                assert "\n" not in str(error)

    fuzz(check, mutations=st.lists(mutation, min_size=1, max_size=4), value=json_values)


def test_the_seeds_are_valid(tmp_path: Path) -> None:
    # or their mutations would test nothing
    for kind, content in seeds().items():
        (tmp_path / kind).write_bytes(content)
        assert read_checkpoint(tmp_path / kind)
    assert HEADER_KEY in hostile.own(tmp_path / "a").read_bytes().decode(errors="replace")
