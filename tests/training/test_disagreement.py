"""Samples on which two networks differ: which, in what order, and what is said and shown of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mint_compress.data.data import Data
from mint_compress.data.datasets import ArrayDataset
from mint_compress.data.thumbnails import thumbnail
from mint_compress.training.disagreement import SHOWN, disagreements
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.protocol import Task
from mint_compress.training.tasks.regression import Regression

CPU = torch.device("cpu")


class Pixels(nn.Module):
    """Three logits: the first pixel of each channel; channels swapped where the second pixel is set."""

    def __init__(self, *, swap: bool) -> None:
        super().__init__()
        self.swap = swap

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, :, 0, 0]
        swapped = (x[:, 0, 0, 1] > 0) & self.swap
        return torch.where(swapped[:, None], logits.flip(1), logits)


def data(images: Tensor, labels: Tensor | None) -> Data:
    source = ArrayDataset(images, labels, mean=None, std=None)
    return Data(source, source, source, source, 3, (3, 2, 2), None, None, "pixels", (len(images),) * 3, "")


def pixels() -> tuple[Tensor, Tensor]:
    """Forty images, of which 5, 17, 33 and 38 get another class, 17 the surest."""
    images = torch.zeros(40, 3, 2, 2)
    images[:, 0, 0, 0] = 1.0
    for row, size in ((5, 2.0), (17, 9.0), (33, 4.0), (38, 3.0)):
        images[row, 0, 0] = torch.tensor([size, 1.0])
    return images, torch.full((40,), 2)


@pytest.mark.parametrize("task", [Classification(), Imitation(Classification())])
def test_the_surest_that_changed_class_come_first(task: Task) -> None:
    found = disagreements(
        Pixels(swap=False), Pixels(swap=True), data(*pixels()), task, device=CPU, look_at=40
    )
    assert [one.index for one in found] == [17, 33, 38, 5]
    assert found[0].said == "class 0 became 2, labelled 2"
    assert all(one.image is not None for one in found)


def test_only_so_many_are_looked_at() -> None:
    found = disagreements(
        Pixels(swap=False), Pixels(swap=True), data(*pixels()), Classification(), device=CPU, look_at=20
    )
    assert [one.index for one in found] == [17, 5]


def test_networks_that_agree_have_nothing_to_show() -> None:
    same = Pixels(swap=False)
    assert disagreements(same, same, data(*pixels()), Classification(), device=CPU, look_at=40) == ()


def test_other_outputs_go_by_what_they_lack_of_the_variance() -> None:
    images = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images[7, 0, 0, 1] = 50.0

    class Value(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0, 0, :1] + self.scale * x[:, 0, 0, 1:]

    found = disagreements(
        Value(0), Value(1), data(images, torch.zeros(12, 1)), Regression(), device=CPU, look_at=12
    )
    assert len(found) == SHOWN and found[0].index == 7
    share = float(2500 / images[:, 0, 0, 0].var(correction=0))
    assert found[0].said == f"{share:.1%} of the outputs' variance is lacking"


def opened(uri: str | None) -> np.ndarray:
    from PIL import Image

    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_picture_is_what_was_normalised() -> None:
    pixels = torch.arange(48, dtype=torch.float32).view(3, 4, 4) / 48
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    shown = opened(thumbnail(normalised, mean, std))
    assert np.abs(shown.transpose(2, 0, 1) - 255 * pixels.numpy()).max() <= 0.51


def test_a_picture_is_small_keeps_its_shape_and_may_be_grey() -> None:
    assert opened(thumbnail(torch.randn(1, 300, 150), None, None)).shape == (96, 48)
    stretched = opened(thumbnail(torch.tensor([[[-3.0, 5.0]]]), None, None))
    assert stretched.tolist() == [[0, 255]]
    assert thumbnail(torch.randn(4, 8, 8), None, None) is None
    assert thumbnail(torch.randn(30), None, None) is None
