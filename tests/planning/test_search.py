"""Plans: what goes, what it will leave, and what cannot be asked for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, build, images
from torch import nn

from mint_compress.errors import MintError
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.nn.counting import layer_macs, module_macs, parameters
from mint_compress.nn.layers import CONVOLUTIONS
from mint_compress.planning.choices import make_plan
from mint_compress.planning.search import most_removed, plan
from mint_compress.scoring.blocks import block_of
from mint_compress.scoring.scores import ChannelScores
from mint_compress.settings import Budget
from mint_compress.surgery.pruning import prune_
from mint_compress.surgery.pruning_plan import PruningPlan


def scores(
    groups: list[ChannelGroup], *, seed: int = 0, blocks: int = 0, **given: list[float]
) -> ChannelScores:
    """Random scores, the same within a block; those given by name as they are."""
    generator = torch.Generator().manual_seed(seed)
    nats = {}
    for group in groups:
        if group.prunable:
            drawn = torch.rand(group.width, generator=generator, dtype=torch.float64)
            nats[group.name] = drawn[block_of(group.width, blocks)]
    nats |= {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()}
    return ChannelScores(nats, "gaussian", 1, 0)


def removed(chosen: PruningPlan) -> dict[str, tuple[int, ...]]:
    return {g.group: g.removed for g in chosen.groups}


def groups_of(name: str) -> list[ChannelGroup]:
    return find_groups(build(name), images(name))


def densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=8, block_config=(3, 3), num_init_features=16, num_classes=10)  # type: ignore[no-any-return]


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(width_mult=0.5, num_classes=10)  # type: ignore[no-any-return]


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)  # type: ignore[no-any-return]


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": mobilenet,
    "resnet": resnet,
    "densenet": densenet,
}
IMAGE = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@cache
def traced(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILDERS[name]().eval()
    return model, find_groups(model, IMAGE)


@pytest.fixture(params=BUILDERS)
def real(request: pytest.FixtureRequest) -> tuple[nn.Module, list[ChannelGroup]]:
    return traced(request.param)


@pytest.fixture
def large() -> tuple[nn.Module, list[ChannelGroup]]:
    return traced("mobilenet")


def test_the_cheapest_positions_of_a_chain_go() -> None:
    """473 parameters: 162 + 12 + 275 + 24. A position of conv1 is worth 27 + 2 + 45 = 74 of them."""
    groups = groups_of("chain")
    given = scores(groups, conv1=[6, 1, 5, 2, 4, 3], conv2=[1e6] * 5)
    chosen = plan(groups, given, Budget(0.3, round_to=1))
    assert removed(chosen) == {"conv1": (1, 3), "conv2": ()}
    assert {g.group: g.kept for g in chosen.groups}["conv1"] == (0, 2, 4, 5)
    assert chosen.parameters == (473, 473 - 2 * 74)
    assert chosen.removed == 2 * 74 / 473 and chosen.asked == 0.3
    assert {(c.layer, c.side): c.removed for c in chosen.cuts} == {
        ("conv1", "out"): (1, 3),
        ("bn1", "both"): (1, 3),
        ("conv2", "in"): (1, 3),
    }
    assert chosen.layers == {"conv1": (162, 108), "bn1": (12, 8), "conv2": (275, 185), "fc": (24, 24)}
    # 36 pixels: 36 * 27 * 6 + 36 * 54 * 5 + 20, and with 4 channels of conv1
    assert chosen.macs == (15572, 36 * 27 * 4 + 36 * 36 * 5 + 20)


def test_exact_indices_where_channels_own_pixels_and_channel_groups() -> None:
    groups = groups_of("flatten")
    chosen = plan(groups, scores(groups, conv=[9, 0, 9, 9], fc1=[99] * 5), Budget(0.1, round_to=1))
    assert removed(chosen) == {"conv": (1,), "fc1": ()}
    (pixels,) = [c for c in chosen.cuts if c.layer == "fc1"]
    assert (pixels.side, pixels.removed) == ("in", (6, 7, 8, 9, 10, 11))
    groups = groups_of("grouped")
    given = scores(groups, conv1=[9, 9, 0, 9], conv2=[99] * 3, conv3=[99] * 4)
    chosen = plan(groups, given, Budget(0.05, round_to=1))
    assert {(c.layer, c.side): c.removed for c in chosen.cuts} == {
        ("conv1", "out"): (2, 6),
        ("conv2", "in"): (2, 6),
    }


def test_one_reader_of_two_groups_loses_channels_of_both() -> None:
    groups = groups_of("concat")
    masks = {"left": np.array([1, 0, 0, 1], dtype=bool), "right": np.array([0, 1, 0], dtype=bool)}
    chosen = make_plan(groups, masks, asked=0.5)
    assert {(c.layer, c.side): c.removed for c in chosen.cuts} == {
        ("left", "out"): (0, 3),
        ("right", "out"): (1,),
        ("join", "in"): (0, 3, 5),
    }


def test_the_cost_decides_which_group_gives() -> None:
    """A position of conv costs 50 of 219 parameters but 462 of 1,863 MACs; one of fc1 28.6 and 27."""
    groups = groups_of("flatten")
    given = scores(groups, conv=[2, 2, 2, 2], fc1=[1, 1, 1, 1, 1])
    by_params = plan(groups, given, Budget(0.1, round_to=1, cost="params"))
    by_macs = plan(groups, given, Budget(0.1, round_to=1, cost="macs"))
    assert removed(by_params) == {"conv": (), "fc1": (0,)}
    assert removed(by_macs) == {"conv": (0,), "fc1": ()}


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_counts_are_real_on_every_tiny_network(name: str) -> None:
    model, x = build(name), images(name)
    groups = find_groups(model, x)
    for ratio in (0.05, 0.2, 0.4):
        try:
            chosen = plan(groups, scores(groups), Budget(ratio, round_to=1, upper_limit=0.8))
        except MintError:
            continue
        assert chosen.parameters[0] - chosen.parameters[1] >= ratio * chosen.parameters[0]
        pruned = prune_(copy.deepcopy(model), chosen)
        assert parameters(pruned) == chosen.parameters[1]
        assert module_macs(pruned, (x,)).total == chosen.macs[1]
        pruned(x)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("round_to", [1, 8])
def test_real_networks(real: tuple[nn.Module, list[ChannelGroup]], ratio: float, round_to: int) -> None:
    model, groups = real
    chosen = plan(groups, scores(groups), Budget(ratio, round_to=round_to))
    pruned = prune_(copy.deepcopy(model), chosen)
    assert parameters(pruned) == chosen.parameters[1]
    assert sum(layer_macs(pruned, (IMAGE,)).values()) == chosen.macs[1]
    assert pruned(IMAGE).shape == (1, 10)
    assert chosen.removed >= ratio
    if parameters(model) > 500_000:
        assert chosen.removed <= ratio + (0.005 if round_to == 1 else 0.02)
    before = dict(model.named_modules())
    for name, layer in pruned.named_modules():
        if round_to == 8 and isinstance(layer, CONVOLUTIONS):
            width = before[name].out_channels
            assert width <= 8 or layer.out_channels % 8 == 0 or layer.out_channels == width, name


@pytest.mark.parametrize("ratio", [0.2, 0.6])
@pytest.mark.parametrize("cost", ["params", "macs"])
def test_a_budget_of_macs(real: tuple[nn.Module, list[ChannelGroup]], ratio: float, cost: Any) -> None:
    model, groups = real
    chosen = plan(groups, scores(groups), Budget(macs_ratio=ratio, round_to=1, cost=cost))
    pruned = prune_(copy.deepcopy(model), chosen)
    before, after = (sum(layer_macs(m, (IMAGE,)).values()) for m in (model, pruned))
    assert chosen.macs == (before, after)
    assert ratio <= 1 - after / before <= ratio + 0.02
    assert (chosen.asked, chosen.asked_macs) == (None, ratio)
    assert chosen.removed == pytest.approx(1 - parameters(pruned) / parameters(model))
    assert PruningPlan.from_json(chosen.to_json()) == chosen


def shares(chosen: PruningPlan) -> tuple[float, float]:
    """What goes of the parameters and of the MACs."""
    return 1 - chosen.parameters[1] / chosen.parameters[0], 1 - chosen.macs[1] / chosen.macs[0]


@pytest.mark.parametrize("cost", ["params", "both"])
def test_parameters_and_macs_at_once(real: tuple[nn.Module, list[ChannelGroup]], cost: Any) -> None:
    """Both shares are reached and neither by far, where one threshold on parameters misses the MACs."""
    _, groups = real
    given = scores(groups)
    alone = shares(plan(groups, given, Budget(0.5, round_to=1, cost=cost)))
    by_macs = shares(plan(groups, given, Budget(0.5, round_to=1, cost="macs")))
    wanted = (alone[1] + by_macs[1]) / 2
    assert alone[1] < wanted < by_macs[1]
    chosen = plan(groups, given, Budget(0.5, macs_ratio=wanted, round_to=1, cost=cost))
    singles = [make_plan(groups, {g.name: np.arange(g.width) < 1}, asked=None) for g in groups if g.prunable]
    steps = (max(step) for step in zip(*map(shares, singles), strict=True))
    for found, asked, step in zip(shares(chosen), (0.5, wanted), steps, strict=True):
        assert asked <= found < asked + step  # no further than the largest single position
    assert (chosen.asked, chosen.asked_macs) == (0.5, wanted)
    assert PruningPlan.from_json(chosen.to_json()) == chosen
    assert plan(groups, given, Budget(0.5, macs_ratio=wanted, round_to=1, cost=cost)) == chosen


def test_a_share_of_macs_that_goes_anyway_changes_nothing(
    real: tuple[nn.Module, list[ChannelGroup]],
) -> None:
    _, groups = real
    given = scores(groups)
    alone = plan(groups, given, Budget(0.5))
    with_macs = plan(groups, given, Budget(0.5, macs_ratio=shares(alone)[1] - 1e-6))
    assert with_macs.cuts == alone.cuts


def test_more_macs_than_the_parameters_bring_take_more_parameters(
    real: tuple[nn.Module, list[ChannelGroup]],
) -> None:
    _, groups = real
    given = scores(groups)
    chosen = plan(groups, given, Budget(0.2, macs_ratio=0.8, round_to=1))
    assert chosen.cuts == plan(groups, given, Budget(macs_ratio=0.8, round_to=1, cost="macs")).cuts
    assert shares(chosen)[0] > 0.2 and 0.8 <= shares(chosen)[1] < 0.81


def test_unreachable_macs_are_named_as_such() -> None:
    groups = groups_of("chain")
    with pytest.raises(MintError, match=r"^99\.0% of the MACs cannot go: the most is ") as raised:
        plan(groups, scores(groups), Budget(macs_ratio=0.99, upper_limit=0.5, round_to=1))
    most = float(str(raised.value).split("up to ")[1].split(",")[0])
    before, after = plan(groups, scores(groups), Budget(macs_ratio=most, upper_limit=0.5, round_to=1)).macs
    assert 1 - after / before >= most


def test_widths_of_folded_channel_groups_are_multiples_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, groups=4), nn.ReLU())
    model.append(nn.Conv2d(64, 40, 1)).append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    model.append(nn.Linear(40, 3))
    groups = find_groups(model, torch.randn(1, 3, 6, 6))
    for ratio in (0.1, 0.3, 0.6):
        pruned = prune_(copy.deepcopy(model), plan(groups, scores(groups), Budget(ratio, round_to=8)))
        widths = [layer.out_channels for layer in pruned.children() if isinstance(layer, nn.Conv2d)]
        assert all(w % 8 == 0 for w in widths) and widths != [32, 64, 40]


def test_the_upper_limit_is_kept(large: tuple[nn.Module, list[ChannelGroup]]) -> None:
    _, groups = large
    widths = {g.name: g.width for g in groups}
    for limit in (0.3, 0.6):
        chosen = plan(groups, scores(groups), Budget(0.25, upper_limit=limit, round_to=1))
        shares = {g.group: len(g.removed) / widths[g.group] for g in chosen.groups}
        assert max(shares.values()) <= limit
    assert max(shares.values()) > 0.3


def test_some_position_always_stays() -> None:
    groups = groups_of("chain")
    with pytest.raises(MintError, match="the most is"):
        plan(groups, scores(groups), Budget(0.99, upper_limit=1, round_to=1))
    chosen = plan(groups, scores(groups), Budget(0.9, upper_limit=1, round_to=1))
    assert all(g.kept for g in chosen.groups)


def test_unreachable_names_the_most_and_what_stands_in_the_way() -> None:
    groups = find_groups(build("auxiliary"), images("auxiliary"), ignore=["conv2"])
    with pytest.raises(MintError) as raised:
        plan(groups, scores(groups), Budget(0.9, upper_limit=0.5, round_to=1))
    message = str(raised.value)
    # half of conv1's six positions, 74 parameters each and 4 of the auxiliary head, of 473 + 28
    assert "90.0% of the parameters cannot go: the most is 46.7 % with --upper-limit 0.5" in message
    assert "conv2 (ignored by the user (conv2))" in message
    assert "\n" not in message and "Ask for a ratio up to 0.467" in message
    chosen = plan(groups, scores(groups), Budget(0.467, upper_limit=0.5, round_to=1))
    assert removed(chosen) == {"conv1": chosen.groups[0].removed} and len(chosen.groups[0].removed) == 3


def test_asking_for_the_most_works_on_a_real_network(real: tuple[nn.Module, list[ChannelGroup]]) -> None:
    _, groups = real
    with pytest.raises(MintError) as raised:
        plan(groups, scores(groups), Budget(0.9999))
    most = float(str(raised.value).split("up to ")[1].split(",")[0])
    assert plan(groups, scores(groups), Budget(most)).removed >= most


def test_nothing_can_go() -> None:
    groups = find_groups(build("chain"), images("chain"), ignore=["conv*"])
    with pytest.raises(MintError, match=r"No channel of this network can be removed: .*ignored by the user"):
        plan(groups, scores(groups), Budget(0.1))


def test_blocks_are_kept_or_removed_whole(large: tuple[nn.Module, list[ChannelGroup]]) -> None:
    _, groups = large
    chosen = plan(groups, scores(groups, blocks=5), Budget(0.5, blocks=5))
    assert chosen.removed >= 0.5
    partly = 0
    for group in chosen.groups:
        width = len(group.kept) + len(group.removed)
        blocks = block_of(width, 5)
        assert not set(blocks[list(group.kept)].tolist()) & set(blocks[list(group.removed)].tolist())
        partly += bool(group.kept) and bool(group.removed)
    assert partly > 3


def test_blocks_are_contiguous_and_nearly_equal() -> None:
    assert block_of(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert block_of(3, 5).tolist() == [0, 1, 2]
    assert block_of(4, 0).tolist() == [0, 1, 2, 3]


def test_the_same_plan_whenever_asked(large: tuple[nn.Module, list[ChannelGroup]]) -> None:
    model, groups = large
    one = plan(groups, scores(groups), Budget(0.5))
    assert one == plan(find_groups(model, IMAGE), scores(groups), Budget(0.5))
    tied = ChannelScores({n: torch.ones_like(v) for n, v in scores(groups).nats.items()}, "x", 1, 0)
    assert plan(groups, tied, Budget(0.5)) == plan(groups, tied, Budget(0.5))


def test_more_is_removed_where_more_is_asked(large: tuple[nn.Module, list[ChannelGroup]]) -> None:
    _, groups = large
    chosen = [plan(groups, scores(groups), Budget(r / 10, round_to=1)) for r in range(1, 9)]
    for less, more in pairwise(chosen):
        for a, b in zip(less.groups, more.groups, strict=True):
            assert set(a.removed) <= set(b.removed)


def test_json_round_trip_is_exact(large: tuple[nn.Module, list[ChannelGroup]]) -> None:
    _, groups = large
    chosen = plan(groups, scores(groups), Budget(0.37))
    again = PruningPlan.from_json(chosen.to_json())
    assert again == chosen and again.to_json() == chosen.to_json()
    assert list(again.layers) == list(chosen.layers)


def damaged(**changes: Any) -> str:
    groups = groups_of("chain")
    return json.dumps({**plan(groups, scores(groups), Budget(0.3)).to_dict(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format": 1, "cuts": [', "not JSON"),
        ("[]", "not a pruning plan"),
        ('{"hello": 1}', "not a pruning plan"),
        (damaged(format=2), "format 2; this version reads 1"),
        (damaged(format=None), "format None"),
        (damaged(cuts=[{"layer": "conv1"}]), "damaged"),
        (damaged(groups=3), "damaged"),
        (damaged(groups={"a": 1}), "damaged"),
        (damaged(parameters=[1]), "damaged"),
        (damaged(parameters=[1, float("inf")]), "damaged"),
        (damaged(macs="ab"), "damaged"),
        (damaged(layers=[]), "damaged"),
        (damaged(layers={"conv1": [1, "x"]}), "damaged"),
        (damaged(asked="much"), "damaged"),
        (damaged(asked_macs=[]), "damaged"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(MintError, match=message) as raised:
        PruningPlan.from_json(text)
    assert "\n" not in str(raised.value) and "--dry-run" in str(raised.value)


def test_a_plan_deeper_than_json_reads_is_refused() -> None:
    with pytest.raises(MintError):
        PruningPlan.from_json("[" * 100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "ratio must lie between 0 and 1, not 0"),
        ({"ratio": 1}, "ratio must lie between 0 and 1, not 1"),
        ({"ratio": float("nan")}, "ratio must lie between 0 and 1, not nan"),
        ({"ratio": 0.5, "macs_ratio": 0}, "macs-ratio must lie between 0 and 1, not 0"),
        ({"macs_ratio": 1.5}, "macs-ratio must lie between 0 and 1, not 1.5"),
        ({"ratio": 0.5, "upper_limit": 0}, "upper-limit must lie between 0 and 1, not 0"),
        ({"ratio": 0.5, "upper_limit": 1.1}, "upper-limit must lie between 0 and 1, not 1.1"),
        ({"ratio": 0.5, "round_to": 0}, "round-to must be a whole number, at least 1, not 0"),
        ({"ratio": 0.5, "cost": "time"}, "Unknown cost 'time'. Choose from: params, macs, both, latency."),
    ],
)
def test_budgets_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MintError, match=message):
        Budget(**options)


def test_a_plan_needs_a_share() -> None:
    groups = groups_of("chain")
    with pytest.raises(MintError, match="A budget is a share of the parameters, of the MACs"):
        plan(groups, scores(groups), Budget(upper_limit=0.5))


@pytest.mark.parametrize("values", [[1.0] * 5, [1.0, float("nan"), 1, 1, 1, 1]])
def test_scores_that_do_not_fit_the_group(values: list[float]) -> None:
    groups = groups_of("chain")
    with pytest.raises(MintError, match="Group conv1 has 6 positions, but its scores"):
        plan(groups, scores(groups, conv1=values), Budget(0.3))


def narrow() -> nn.Module:
    """As wide as the P-Net of MTCNN: no layer has more than four steps of eight."""
    layers = [nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.Conv2d(10, 16, 3), nn.PReLU(16), nn.Conv2d(16, 32, 3)]
    return nn.Sequential(*layers, nn.PReLU(32), nn.Conv2d(32, 6, 1)).eval()


def test_a_narrow_network_gets_finer_steps_where_eight_would_take_too_much() -> None:
    torch.manual_seed(0)
    groups = find_groups(narrow(), torch.randn(1, 3, 12, 12))
    given = scores(groups)
    coarse = plan(groups, given, Budget(0.3, round_to=8))
    chosen = plan(groups, given, Budget(0.3))
    assert coarse.removed > 0.32 >= chosen.removed >= 0.3
    assert coarse.round_to == 8 and chosen.round_to in (4, 2, 1)
    # the coarsest that is near enough, and what nothing near enough can be found for as near as it gets
    finer = {n: plan(groups, given, Budget(0.3, round_to=n)) for n in (4, 2, 1)}
    assert chosen.round_to == next((n for n, p in finer.items() if p.removed <= 0.32), 1)
    assert PruningPlan.from_json(chosen.to_json()).round_to == chosen.round_to
    most = most_removed(groups, Budget(round_to=8))
    assert most is not None
    beyond = plan(groups, given, Budget(most.removed + 0.01))
    assert beyond.removed >= most.removed + 0.01 and beyond.round_to is not None and beyond.round_to < 8
    with pytest.raises(MintError, match="cannot go"):
        plan(groups, given, Budget(most.removed + 0.01, round_to=8))


def test_a_wide_network_keeps_multiples_of_eight() -> None:
    torch.manual_seed(0)
    layers = [part for i in range(8) for part in (nn.Conv2d(128 if i else 3, 128, 1), nn.ReLU())]
    wide = nn.Sequential(*layers, nn.Conv2d(128, 6, 1))
    groups = find_groups(wide.eval(), torch.randn(1, 3, 8, 8))
    chosen = plan(groups, scores(groups), Budget(0.4))
    assert chosen.round_to == 8 and all(len(cut.kept) % 8 == 0 for cut in chosen.groups)
