"""What the original gives is computed once for a dataset, and anew for a loader or what is too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mint_compress.data.datasets import Source
from mint_compress.training.evaluation import evaluate
from mint_compress.training.original_outputs import OriginalOutputs
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.imitation import Imitation

SET = TensorDataset(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)))


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches that a network is asked for."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    yield sizes
    handle.remove()


def two_networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.Linear(3, 4)


@pytest.mark.parametrize("task", [Imitation(), Imitation(Classification())])
def test_a_dataset_is_shown_to_the_original_once(task: Imitation) -> None:
    original, other = two_networks()
    wanted = evaluate(other, SET, task, reference=original, batch_size=4)
    kept = OriginalOutputs()
    assert evaluate(original, SET, task, reference=original, kept=kept, batch_size=4).value == 1
    with counted(original) as asked:
        assert evaluate(other, SET, task, reference=original, kept=kept, batch_size=4) == wanted
        assert asked == []
        again = evaluate(other, SET, task, reference=original, kept=kept, batch_size=5)
        assert again.value == pytest.approx(wanted.value)
        assert asked == [5, 5], "batches of another size are others"


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        pytest.param(DataLoader(SET, batch_size=4, shuffle=True), OriginalOutputs(), id="a loader"),
        pytest.param(SET, OriginalOutputs(most_bytes=10 * 4 * 4 - 1), id="too many bytes"),
    ],
)
def test_what_may_change_or_is_too_large_is_not_kept(source: Source, kept: OriginalOutputs) -> None:
    original, other = two_networks()
    with counted(original) as asked:
        first, second = (
            evaluate(other, source, Imitation(), reference=original, kept=kept, batch_size=4).value
            for _ in range(2)
        )
    assert first == pytest.approx(second)
    assert asked == [4, 4, 2] * 2


def test_as_many_bytes_as_are_allowed_are_kept() -> None:
    original, other = two_networks()
    kept = OriginalOutputs(most_bytes=10 * 4 * 4)
    with counted(original) as asked:
        for _ in range(2):
            evaluate(other, SET, Imitation(), reference=original, kept=kept, batch_size=4)
    assert asked == [4, 4, 2]


def test_a_task_with_labels_does_not_ask_the_original() -> None:
    original, other = two_networks()
    labelled = TensorDataset(SET.tensors[0], torch.arange(10) % 4)
    with counted(original) as asked:
        evaluate(other, labelled, Classification(), reference=original, kept=OriginalOutputs())
    assert asked == []
