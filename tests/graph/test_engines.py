"""Two engines find channel groups: what each answers, which one is listened to, and whose faults come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import NETWORKS, Chain, build, images
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mint_compress.errors import STRICT
from mint_compress.graph.choosing import proved
from mint_compress.graph.depgraph import TorchPruning
from mint_compress.graph.engine_comparison import channel_map, compared
from mint_compress.graph.engines import Found
from mint_compress.graph.finding import answered
from mint_compress.graph.label_groups import ChannelLabels
from mint_compress.graph.label_rules import RULES
from mint_compress.graph.passes import followed
from mint_compress.graph.reference import reference_copy

GRAPH, LABELS = "Torch-Pruning's graph", "the labels"

DIFFERENT = {
    "divider": "differ: labels upheld at dw",
    "padded": "differ: labels upheld at conv1",
    "split": "differ: labels upheld at conv",
    "split_backwards": "differ: labels upheld at conv",
    "uneven_split": "differ: neither upheld at conv",
    "rms_mlp": "differ: labels upheld at fc1",
    **dict.fromkeys(("lstm", "gru", "cells"), "labels only: IndexError: list index out of range"),
    "auxiliary": "differ: labels upheld at conv1",
    "wide_layer_norm": "differ: labels upheld at conv1",
    "wide_layer_norm_affine": "differ: labels upheld at conv1",
    "transformer": "differ: neither upheld at attention.qkv",
    "gated": "differ: labels upheld at fc1",
    "gated_convolutions": "differ: labels upheld at conv1, conv2",
    "shuffled": "differ: neither upheld at inner2",
    "selective_kernel": "differ: neither upheld at weigh",
    "pixel_shuffled": "differ: labels upheld at conv",
}
"""Network -> what the engines say of it; of all others they say the same."""

ON_LABELS = {
    *("multiplier", "divider", "padded", "split", "split_backwards", "uneven_split", "norm_mlp"),
    *("grouped_transposed", "auxiliary", "tracked_instance_norm", "wide_layer_norm"),
    *("wide_layer_norm_affine", "fixed_shape", "transformer", "windows", "gated"),
    *("gated_convolutions", "shuffled", "selective_kernel", "pixel_shuffled"),
    *("rms_mlp", "lstm", "gru", "cells"),
}
"""Networks of which the labels are asked, since the graph is not right as a whole or may not be."""


@pytest.mark.parametrize("name", NETWORKS)
def test_where_both_engines_answer(name: str) -> None:
    assert str(compared(build(name), images(name))) == DIFFERENT.get(name, "agree")
    assert answered(build(name), images(name)).engine == (LABELS if name in ON_LABELS else GRAPH)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - DIFFERENT.keys()))
def test_where_the_engines_agree_so_do_the_proofs(name: str) -> None:
    reference, recording = followed(*reference_copy(build(name), (images(name),)))
    upheld = []
    for engine in (TorchPruning(), ChannelLabels(recording)):
        found = engine.groups(reference)
        assert isinstance(found, Found)
        upheld.append({channel_map(g) for g in proved(reference, found.groups) if g.prunable})
    assert upheld[0] == upheld[1] and upheld[0]


def test_a_graph_that_is_too_costly_leaves_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_compress.graph.depgraph.VISITS", 0)
    why = "TooCostly: its search takes too many visits"
    assert str(compared(build("chain"), images("chain"))) == f"labels only: {why}"
    answer = answered(build("chain"), images("chain"))
    assert (answer.engine, answer.why) == (LABELS, why)


def broken(*given: Any) -> None:
    raise KeyError("no such label")


class Careful(Chain):
    """Has a way around whatever fails."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except Exception:
            return self.fc(x.new_zeros(len(x), 5))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Chain, Careful])
def test_a_rule_that_fails_comes_out_where_faults_are_looked_for(
    kind: type[Chain], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "mean", broken)
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(KeyError, match="no such label"):
        answered(kind().eval(), images("chain"))


@pytest.mark.parametrize("kind", [Chain, Careful])
def test_a_rule_that_fails_leaves_the_graph(
    kind: type[Chain], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(RULES, "mean", broken)
    monkeypatch.delenv(STRICT, raising=False)
    answer = answered(kind().eval(), images("chain"))
    assert [g.name for g in answer.groups if g.prunable] == ["conv2", "conv1"]
    why = "our own fault, KeyError: 'no such label'"
    assert (answer.engine, answer.why) == (GRAPH, f"the channels could not be followed ({why})")
    (said,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert said.getMessage() == f"{answer.why}; Torch-Pruning's graph alone is used"
    assert str(compared(kind().eval(), images("chain"))) == f"graph only: {why}"


class Suspicious(Chain):
    """Does not want to be looked at."""

    def forward(self, x: Tensor) -> Tensor:
        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("who is there?")
        return super().forward(x)


def test_a_forward_that_fails_while_it_is_followed_is_told_as_the_users() -> None:
    answer = answered(Suspicious().eval(), images("chain"))
    assert [g.name for g in answer.groups if g.prunable] == ["conv2", "conv1"]
    assert answer.engine == GRAPH and answer.why == (
        "the channels could not be followed (The network's forward pass failed: RuntimeError: who is there?)"
    )


def test_what_following_leaves_behind() -> None:
    """No hook and no mode, however it ends."""
    model = Suspicious().eval()
    twin, inputs = reference_copy(model, (images("chain"),))
    followed(twin, inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
    assert _get_current_dispatch_mode() is None and torch.get_default_dtype() == torch.float32
