"""A repaired network learns from the original on images alone, and is never left further from it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from networks import Chain, Residual
from surgery import randomise
from torch import Tensor, nn
from toydata import task as quarters

import mint_compress as mint
from mint_compress.nn.counting import module_macs
from mint_compress.settings import HEAL_EPOCHS
from mint_compress.training import healing as module
from mint_compress.training.healing import heal_
from mint_compress.training.matching import matched, places_to_match
from mint_compress.training.tasks.detection import Detection
from mint_compress.training.tasks.distance import output_distance


def images(count: int = 128, seed: int = 0) -> Tensor:
    return quarters(count, seed=seed)[0]


def shrunk(original: nn.Module, *, repair: bool = True) -> tuple[nn.Module, mint.PruningPlan]:
    """Without half of its parameters."""
    batches = list(images().split(64))
    groups = mint.find_groups(original, images()[:1])
    scores = mint.score(groups, mint.calibrate(original, groups, batches, seed=0))
    plan = mint.plan(groups, scores, mint.Budget(0.5, round_to=1))
    small = mint.prune_(copy.deepcopy(original), plan)
    if repair:
        mint.compensate_(small, original, plan, batches)
    return small, plan


@pytest.fixture
def original() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomise(Chain(16, 12))


def far(small: nn.Module, original: nn.Module, on: Tensor) -> float:
    with torch.no_grad():
        return float(output_distance(small(on), original(on)))


def test_outputs_come_closer_and_statistics_stay(original: nn.Module) -> None:
    small, plan = shrunk(original, repair=False)
    held_out = images(64, seed=9)
    before, teacher = copy.deepcopy(small), copy.deepcopy(original)
    result = heal_(small, original, plan, images(), held_out=held_out, epochs=10, augment=False, device="cpu")
    assert result.before == pytest.approx(far(before, original, held_out), rel=1e-5)
    assert result.after == pytest.approx(far(small, original, held_out), rel=1e-5)
    assert result.kept and result.after < 0.9 * result.before
    for name, buffer in small.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name)), name
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), teacher.parameters(), strict=True))
    assert not small.training and all(p.grad is None for p in small.parameters())
    assert not any(m._forward_pre_hooks for m in (*small.modules(), *original.modules()))


def test_a_seed_gives_the_same_weights(original: nn.Module) -> None:
    found = []
    for _ in range(2):
        small, plan = shrunk(original)
        heal_(small, original, plan, images(), epochs=2, device="cpu", seed=5)
        found.append(small.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_does_harm_is_undone(original: nn.Module) -> None:
    small, plan = shrunk(original)
    before = copy.deepcopy(small.state_dict())
    result = heal_(
        small, original, plan, images(), held_out=images(64, seed=9), epochs=2, lr=30.0, device="cpu"
    )
    assert not result.kept and "undone" in str(result)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_how_long_it_takes_by_default_is_counted(
    original: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, plan = shrunk(original)
    one = images(1)
    epoch = 128 * (module_macs(original, one).total + 3 * module_macs(small, one).total)
    for paid, epochs in ((0.9 * epoch, 0), (2.5 * epoch, 2), (1e3 * epoch, HEAL_EPOCHS)):
        monkeypatch.setitem(module.AFFORDABLE_MACS, "cpu", paid)
        assert heal_(copy.deepcopy(small), original, plan, images(), device="cpu").epochs == epochs
    nothing = heal_(small, original, plan, images(), minutes=1e-6, device="cpu")
    assert nothing.epochs == 0 and math.isnan(nothing.after) and "heal-epochs" in str(nothing)
    assert heal_(small, original, plan, images(), minutes=0.02, device="cpu").epochs > 0
    # fewer images than one update takes: the time of an update is known all the same
    few = heal_(small, original, plan, images(40), minutes=0.01, device="cpu")
    assert 0 < few.epochs < 1000


class Doubled(nn.Module):
    """Two outputs, one of them a thousand times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.small, self.large = nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).relu()
        return {"small": self.small(x), "large": 1000 * self.large(x)}


def test_every_output_counts_whatever_its_size() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = Doubled().eval()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    taught = {name: out.detach() for name, out in original(x).items()}
    wrong = {"small": taught["small"].mean() + 0 * taught["small"], "large": taught["large"]}
    assert float(output_distance(wrong, taught)) == pytest.approx(0.5, rel=1e-5)
    wrong = {"small": taught["small"], "large": taught["large"].mean() + 0 * taught["large"]}
    assert float(output_distance(wrong, taught)) == pytest.approx(0.5, rel=1e-5)


def test_activations_are_compared_at_the_channels_that_are_left(original: nn.Module) -> None:
    small, plan = shrunk(original, repair=False)
    places = places_to_match(original, plan, images(1), 6)
    assert [place.layer for place in places] == ["conv2", "fc"]
    gone = {cut.layer: cut.removed for cut in plan.cuts if cut.side == "in"}
    for place in places:
        assert place.kept.tolist() == [
            c for c in range(len(place.kept) + len(gone[place.layer])) if c not in gone[place.layer]
        ]
    # what conv2 is given is right as long as conv1 is; what fc is given lacks what conv2 was not given
    for only, right in ((places[:1], True), (places[1:], False)):
        with matched(small, original, only) as apart, torch.no_grad():
            original(images(8)), small(images(8))
            assert (float(apart()) < 1e-12) is right
    with matched(original, copy.deepcopy(original), places) as apart, torch.no_grad():
        assert apart() is None  # nothing has run


def test_what_passes_a_shortcut_is_compared_behind_it() -> None:
    original = randomise(Residual())
    small, plan = shrunk(original)
    places = places_to_match(original, plan, images(1))
    assert places[-1].layer == "fc" and {place.layer for place in places} <= set(
        dict(original.named_modules())
    )
    result = heal_(small, original, plan, images(), held_out=images(64, seed=9), epochs=4, device="cpu")
    assert result.epochs == 4


class NoGradient(Chain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_a_network_without_gradients_cannot_be_healed() -> None:
    original = randomise(NoGradient(16, 12))
    small, plan = shrunk(original)
    with pytest.raises(mint.MintError, match="backward pass"):
        heal_(small, original, plan, images(), epochs=1, device="cpu")


class Boxes(Chain):
    """Gives dicts of as many boxes as it likes, which no loss can compare."""

    def forward(self, x: Tensor) -> Any:
        return [{"boxes": row[: int(row.sum() > 0) + 1]} for row in super().forward(x)]


def test_outputs_that_cannot_be_compared_are_healed_by_what_is_on_the_way(original: nn.Module) -> None:
    small, plan = shrunk(original, repair=False)
    pair = Boxes(16, 12), Boxes(small.conv1.out_channels, small.conv2.out_channels)  # type: ignore[arg-type]
    for network, weights in zip(pair, (original, small), strict=True):
        network.load_state_dict(weights.state_dict())
    result = heal_(
        pair[1],
        pair[0],
        plan,
        images(),
        held_out=images(64, seed=9),
        task=Detection(),
        epochs=8,
        device="cpu",
    )
    assert result.kept and result.after < 0.9 * result.before


def test_a_loss_that_explodes_is_undone_and_not_an_error(original: nn.Module) -> None:
    small, plan = shrunk(original)
    before = copy.deepcopy(small.state_dict())
    result = heal_(small, original, plan, images(), epochs=3, lr=1e30, device="cpu")
    assert math.isinf(result.after) and not result.kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
