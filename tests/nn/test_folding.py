"""Weight norm, spectral norm and masks are folded in, whether or not the network has run; outputs stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import mint_compress as mint
from mint_compress.inspecting import inspect_model
from mint_compress.nn.copying import copied
from mint_compress.nn.folding import fold_computed_weights_


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


KINDS: dict[str, tuple[Callable[[Any], nn.Module], str, str]] = {
    "old weight_norm": (weight_norm, "weight_norm", "remove_weight_norm"),
    "weight_norm": (parametrizations.weight_norm, "weight_norm", "remove_parametrizations"),
    "old spectral_norm": (spectral_norm, "spectral_norm", "remove_spectral_norm"),
    "spectral_norm": (parametrizations.spectral_norm, "spectral_norm", "remove_parametrizations"),
    "masks": (masked, "pruning masks", "prune.remove"),
}


def network(kind: str, *, used: bool) -> nn.Module:
    torch.manual_seed(0)
    make = KINDS[kind][0]
    model = nn.Sequential(
        make(nn.Conv1d(1, 16, 3)),
        nn.ReLU(),
        make(nn.Conv1d(16, 16, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(448, 2),
    )
    if used:  # leaves a weight with a history behind
        model(torch.randn(4, 1, 32))
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_in_a_network_is_the_same_and_can_be_pruned(kind: str, used: bool) -> None:
    model, x = network(kind, used=used), torch.randn(2, 1, 32)
    _, called, remedy = KINDS[kind]
    # as it is, nothing goes, and the reason says what to do
    for group in mint.find_groups(model, x):
        assert not group.prunable
        if group.reason is not None and "head" not in group.reason:
            assert called in group.reason and remedy in group.reason, group.reason
    _, report = mint.compress(model, None, ratio=0.3, epochs=0, round_to=1, input_shape=(1, 32))
    assert f"{called} folded into the weights of 2 layers" in report.notes
    assert report.ratio is not None and report.ratio.removed >= 0.3
    inspection = inspect_model(model, input_shape=(1, 32))
    assert [g.prunable for g in inspection.groups] == [True, True, False]
    folded = copied(model)
    assert fold_computed_weights_(folded) == (f"{called} folded into the weights of 2 layers",)
    assert fold_computed_weights_(folded) == ()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))
