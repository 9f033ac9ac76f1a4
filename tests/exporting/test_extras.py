"""Runtimes that are extras: where one is not installed, its extra is named before anything is read."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from networks import Chain
from toydata import arrays

from mint_compress import MintError, compress
from mint_compress.exporting.protocol import find_exporter

EXTRAS = {".xml": ("openvino", "openvino"), ".pte": ("executorch", "executorch")}
"""Suffix -> the package that is missing, and its extra."""


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed."""
    find = importlib.util.find_spec

    def found(name: str, *rest: Any) -> ModuleSpec | None:
        return None if name == package else find(name, *rest)

    monkeypatch.setattr("mint_exporters.extras.find_spec", found)


@pytest.mark.parametrize("suffix", EXTRAS)
def test_the_extra_is_named_before_the_model_is_read(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, extra = EXTRAS[suffix]
    without(package, monkeypatch)
    said = rf"needs {package}, not installed here: pip install 'mint-compress\[{extra}\]'\."
    model = tmp_path / "model.pt"
    model.write_bytes(b"never read")
    with pytest.raises(MintError, match=said) as raised:
        compress(model, None, output=tmp_path / f"a{suffix}", ratio=0.5)
    assert raised.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_int8_of_openvino_needs_nncf_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="pip install 'mint-compress[openvino]'")
    without("nncf", monkeypatch)
    with pytest.raises(MintError, match=r"needs nncf, not installed here: .*\[openvino\]"):
        compress(Chain(), arrays(), output=tmp_path / "a.xml", ratio=0.5, int8=True)
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_lists_those_that_are_known() -> None:
    with pytest.raises(MintError, match=r"No exporter writes 'a\.foo'\. .*\.onnx, \.pte, \.xml"):
        find_exporter("a.foo")
