"""Every metric against scikit-learn, torchmetrics, or a loop that counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from mint_compress.errors import MintError
from mint_compress.training.evaluation import evaluate
from mint_compress.training.tasks.classification import Classification
from mint_compress.training.tasks.detection import Detection
from mint_compress.training.tasks.distance import output_distance
from mint_compress.training.tasks.embedding import Embedding
from mint_compress.training.tasks.imitation import Imitation
from mint_compress.training.tasks.multilabel import Multilabel
from mint_compress.training.tasks.protocol import Measurement, Task
from mint_compress.training.tasks.regression import Regression
from mint_compress.training.tasks.segmentation import Segmentation


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(task: Task, outputs: Tensor, targets: Tensor) -> Measurement:
    return evaluate(nn.Identity(), TensorDataset(outputs, targets), task, batch_size=7)


# ---- segmentation


def test_mean_overlap_counts_classes_that_are_there() -> None:
    logits = drawn(20, 4, 6, 5)
    logits[:, 3] = -9.0  # never predicted, and not in the labels
    labels = (drawn(20, 6, 5, seed=1) > 0).long() + (drawn(20, 6, 5, seed=2) > 1).long()
    labels[0, :3], labels[5] = 255, -100
    found = measured(Segmentation(), logits, labels)
    predicted, kept = logits.argmax(1), (labels >= 0) & (labels < 4)
    overlaps = []
    for number in range(3):
        mine, theirs = ((x == number) & kept for x in (predicted, labels))
        overlaps.append(int((mine & theirs).sum()) / int((mine | theirs).sum()))
    assert found.classes[:3] == pytest.approx(overlaps) and found.classes[3] is None
    assert found.value == pytest.approx(sum(overlaps) / 3)
    right = float((predicted == labels)[kept].double().mean())
    assert found.details == {"pixel accuracy": pytest.approx(right)}
    assert found.support == tuple(int((labels[kept] == c).sum()) for c in range(4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("channel", [True, False])
def test_masks_for_one_logit_may_be_of_any_type(dtype: torch.dtype, channel: bool) -> None:
    logits, masks = drawn(6, 1, 4, 4), (drawn(6, 1, 4, 4, seed=1) > 0).to(dtype)
    masks = masks if channel else masks[:, 0]
    task, there = Segmentation(label_smoothing=0), (masks.bool() if channel else masks.bool()[:, None])
    task.check(logits, masks, "the data", masks)
    oracle = functional.binary_cross_entropy_with_logits(logits, there.float())
    assert float(task.loss(logits, masks)) == pytest.approx(float(oracle), rel=1e-5)
    mine = logits > 0
    foreground = int((mine & there).sum()) / int((mine | there).sum())
    assert measured(task, logits, masks).classes[1] == pytest.approx(foreground)


def test_segmentation_takes_the_first_map_of_several() -> None:
    labels = torch.zeros(2, 4, 4).long()
    outputs = {"pooled": torch.zeros(2, 7), "out": torch.zeros(2, 3, 4, 4), "aux": torch.zeros(2, 3, 4, 4)}
    labels[0, 0, 0] = 2
    assert Segmentation().settled(outputs, labels, asked=False).logits == 1


# ---- multilabel


def test_average_precision_is_scikit_learns() -> None:
    logits, targets = drawn(60, 5), (drawn(60, 5, seed=1) > 0.8).float()
    targets[:, 4] = 0  # no positive
    found = measured(Multilabel(), logits, targets)
    each = [average_precision_score(targets[:, c], logits[:, c]) for c in range(4)]
    assert found.classes[:4] == pytest.approx(each, rel=1e-5) and found.classes[4] is None
    assert found.value == pytest.approx(sum(each) / 4, rel=1e-5)
    f1 = f1_score(targets[:, :4], logits[:, :4] > 0, average="macro")
    assert found.details["macro F1"] == pytest.approx(f1, rel=1e-5)
    loss = functional.binary_cross_entropy_with_logits(logits, targets)
    assert float(Multilabel().loss(logits, targets.long())) == pytest.approx(float(loss))
    with pytest.raises(MintError, match="multilabel takes 0 and 1 for each class"):
        Multilabel().check(logits, targets * 2, "the data")
    with pytest.raises(MintError, match="No target is 1"):
        measured(Multilabel(), logits, torch.zeros(60, 5))


# ---- regression


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_explained_variance_is_scikit_learns_far_from_zero_too(offset: float) -> None:
    targets = drawn(50, 3).double() + offset
    outputs = targets + 0.3 * drawn(50, 3, seed=1)
    found = measured(Regression(), outputs, targets)
    assert found.value == pytest.approx(r2_score(targets, outputs), rel=1e-6)
    assert found.details["MAE"] == pytest.approx(mean_absolute_error(targets, outputs), rel=1e-9)
    rmse = float((outputs - targets).square().mean().sqrt())
    assert found.details["RMSE"] == pytest.approx(rmse, rel=1e-9)


def test_one_number_a_sample_fits_a_column_and_images_are_one() -> None:
    targets = drawn(50)
    outputs = targets + 0.5 * drawn(50, seed=1)
    column = measured(Regression(), outputs[:, None], targets).value
    assert column == pytest.approx(r2_score(targets, outputs), rel=1e-5)
    assert column == pytest.approx(measured(Regression(), outputs, targets).value)
    images = drawn(8, 2, 3, 3)
    off = images + 0.1 * drawn(8, 2, 3, 3, seed=1)
    oracle = r2_score(images.flatten(), off.flatten())
    assert measured(Regression(), off, images).value == pytest.approx(oracle, rel=1e-5)
    assert float(Regression().loss(outputs[:, None], targets)) == pytest.approx(
        float((outputs - targets).square().mean())
    )
    with pytest.raises(MintError, match="The targets are constant"):
        measured(Regression(), outputs, torch.ones(50))
    with pytest.raises(MintError, match=r"output \(50, 2\) does not fit the targets in the data, \(50,\) of"):
        Regression().check(drawn(50, 2), targets, "the data")
    with pytest.raises(MintError, match="NaN or infinite"):
        Regression().check(outputs, targets, "the data", torch.tensor([1.0, math.inf]))


# ---- embedding


def test_retrieval_against_a_loop() -> None:
    vectors, labels = functional.normalize(drawn(40, 6), dim=1), torch.arange(40) % 7
    labels[39] = 99  # alone: not asked about
    right = []
    for i in range(39):
        cosines = [-2.0 if i == j else float(vectors[i] @ vectors[j]) for j in range(40)]
        right.append(labels[max(range(40), key=cosines.__getitem__)] == labels[i])
    assert measured(Embedding(), vectors * 5, labels).value == pytest.approx(sum(map(int, right)) / 39)
    apart = Embedding().divergence(vectors, 3 * vectors.roll(1, 0))
    oracle = 1 - (vectors * vectors.roll(1, 0)).sum(1).mean()
    assert float(apart) == pytest.approx(float(oracle), rel=1e-5)
    with pytest.raises(MintError, match="No two samples have the same label"):
        measured(Embedding(), vectors, torch.arange(40))


# ---- imitation


class Two(nn.Module):
    """Two outputs of different sizes; a part of the first is lost."""

    def __init__(self, loses: float) -> None:
        super().__init__()
        self.loses = loses

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a": x * (1 - self.loses), "more": [1000 * x[:, :2], x.argmax(1)]}


def test_agreement_is_the_share_of_variance_that_is_kept() -> None:
    x = drawn(64, 5) + 7
    source = TensorDataset(x)
    found = evaluate(Two(0.1), source, Imitation(), reference=Two(0.0), batch_size=9)
    kept = 1 - float((0.1 * x).double().square().sum() / (x - x.mean(0)).double().square().sum())
    assert found.details == {"output 1": pytest.approx(kept, rel=1e-5), "output 2": 1.0}
    assert found.value == pytest.approx((kept + 1) / 2, rel=1e-5)
    assert evaluate(Two(0.0), source, Imitation(), reference=Two(0.0)).value == 1.0
    with pytest.raises(MintError, match="compares with the original network"):
        evaluate(Two(0.0), source, Imitation())


def test_a_classifier_without_labels_is_compared_by_its_classes() -> None:
    x = drawn(50, 4)

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([0.0, 0.8, 0.0, 0.0])

    task = Imitation(Classification())
    assert task.metric.name == "top-1 same" and task.settled(x, None, asked=True).logits == 0
    found = evaluate(Shifted(), TensorDataset(x), task, reference=nn.Identity())
    same = (Shifted()(x).argmax(1) == x.argmax(1)).double().mean()
    assert found.value == pytest.approx(float(same)) and 0.5 < found.value < 1
    assert float(task.divergence(x, x)) == pytest.approx(0, abs=1e-6)
    cosine = evaluate(Shifted(), TensorDataset(x), Imitation(Embedding()), reference=nn.Identity())
    assert cosine.value == pytest.approx(float(functional.cosine_similarity(Shifted()(x), x, 1).mean()))


# ---- detection


def boxes(
    *rows: tuple[float, ...], labels: list[int], scores: list[float] | None = None
) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(rows).view(-1, 4), "labels": torch.tensor(labels)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def test_average_precision_of_boxes() -> None:
    wanted = [boxes((0, 0, 10, 10), labels=[1]), boxes((0, 0, 10, 10), (20, 20, 40, 40), labels=[1, 3])]
    perfect = [{**one, "scores": torch.ones(len(one["labels"]))} for one in wanted]
    meter = Detection().meter()
    meter.update(perfect, wanted)
    found = meter.compute()
    assert found.value == pytest.approx(1.0) and found.details["mAP50"] == pytest.approx(1.0)
    assert found.classes == (None, pytest.approx(1.0), None, pytest.approx(1.0))
    assert found.support == (0, 2, 0, 1)
    # the box of class 3 is shifted: it overlaps by 18 * 20 / (2 * 400 - 360) = .818, right up to .80
    meter = Detection().meter()
    shifted = boxes((0, 0, 10, 10), (22, 20, 42, 40), labels=[1, 3], scores=[0.9, 0.9])
    meter.update([perfect[0], shifted], wanted)
    found = meter.compute()
    assert found.classes[3] == pytest.approx(7 / 10) and found.classes[1] == pytest.approx(1.0)
    assert found.value == pytest.approx((1 + 0.7) / 2)
    with pytest.raises(MintError, match="There is no box"):
        Detection().meter().compute()


# ---- sigmoids, and several outputs


def test_large_logits_do_not_tie_in_average_precision() -> None:
    logits, targets = 100 + drawn(40, 1), (drawn(40, 1, seed=1) > 0).long()
    oracle = average_precision_score(targets[:, 0], logits[:, 0])
    assert measured(Multilabel(), logits - 70, targets).value == pytest.approx(oracle, rel=1e-5)


def test_a_sigmoid_at_the_end_is_seen() -> None:
    logits, masks = drawn(4, 1, 6, 6), (drawn(4, 1, 6, 6, seed=1) > 0).float()
    task = Segmentation(label_smoothing=0).settled(logits.sigmoid(), masks, asked=False)
    oracle = functional.binary_cross_entropy_with_logits(logits, masks)
    assert float(task.loss(logits.sigmoid(), masks)) == pytest.approx(float(oracle), rel=1e-5)
    expected = measured(Segmentation(), logits, masks)
    assert measured(task, logits.sigmoid(), masks) == expected and 0 < expected.value < 1
    assert any("probabilities" in said for said in task.check(logits.sigmoid(), masks, "the data"))
    several, hot = drawn(8, 5), (drawn(8, 5, seed=1) > 0).float()
    tagger = Multilabel().settled(several.sigmoid(), hot, asked=False)
    oracle = functional.binary_cross_entropy_with_logits(several, hot)
    assert float(tagger.loss(several.sigmoid(), hot)) == pytest.approx(float(oracle), rel=1e-5)
    assert not Multilabel().settled(several, hot, asked=False).probabilities


def test_targets_are_for_the_output_of_their_shape() -> None:
    outputs = {"logits": drawn(5, 3), "depth": drawn(5, 1, 4, 4, seed=1)}
    targets = drawn(5, 1, 4, 4, seed=2)
    task = Regression().settled(outputs, targets, asked=False)
    wanted = (outputs["depth"] - targets).square().mean()
    assert float(task.loss(outputs, targets)) == pytest.approx(float(wanted))
    assert "output 2, (1, 4, 4) a sample" in task.check(outputs, targets, "the data")[0]


def test_the_distance_of_outputs_far_from_zero_is_that_of_what_varies() -> None:
    taught = drawn(1000, 3).double() + 1e4
    ours = taught + 0.5 * drawn(1000, 3, seed=1)
    share = float((ours - taught).square().mean() / taught.var(correction=0))
    assert float(output_distance(ours.float(), taught.float())) == pytest.approx(share, rel=1e-2)
    assert float(output_distance(torch.ones(4, 2), torch.ones(4, 2))) == 0


def test_what_differs_by_rounding_alone_is_the_same_for_all_samples() -> None:
    class Constant(nn.Module):
        """Its output is the same but for the last bits."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), self.value) * (1 + 1e-7 * x[:, :2])

    source = TensorDataset(drawn(64, 5))
    for value, agreement in ((4.0, 1.0), (4.001, 0.0)):
        found = evaluate(Constant(value), source, Imitation(), reference=Constant(4.0 * (1 + 1e-7)))
        assert found.value == agreement
