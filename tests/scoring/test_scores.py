"""Scores give the order of elimination back, and readers in common make groups compete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from networks import NETWORKS, Chain, Concat, build, images
from torch import nn

from mint_compress.errors import MintError
from mint_compress.estimators.backward import backward_elimination
from mint_compress.estimators.elimination import eliminate
from mint_compress.estimators.gaussian import gaussian
from mint_compress.estimators.regression import regression
from mint_compress.graph.finding import find_groups
from mint_compress.graph.groups import ChannelGroup
from mint_compress.planning.search import plan
from mint_compress.scoring.calibration import Calibration, calibrate
from mint_compress.scoring.scores import ChannelScores, score
from mint_compress.settings import Budget


def scored(model: nn.Module, name: str, **options: int) -> ChannelScores:
    x = images(name, 24)
    groups = find_groups(model, x[:1])
    return score(groups, calibrate(model, groups, [x]), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_one_strictly_ordered_score_per_position(name: str) -> None:
    model, x = build(name), images(name, 8)
    groups = find_groups(model, x[:1])
    found = score(groups, calibrate(model, groups, [x]))
    assert set(found.nats) == {g.name for g in groups if g.prunable}
    for group in groups:
        if group.prunable:
            nats = found.nats[group.name]
            assert nats.shape == (group.width,) and nats.dtype == torch.float64
            assert bool(nats.isfinite().all()) and bool((nats > 0).all())
            assert len(nats.unique()) == group.width
    assert (found.estimator, found.images, found.seed) == ("gaussian", 8, 0)


def test_sorting_gives_the_order_of_elimination() -> None:
    model, x = build("chain"), images("chain", 24)
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x])
    nats = score(groups, calibration).nats["conv1"]
    seen = calibration.moments["conv2"]
    units = torch.arange(6).repeat_interleave(9)
    problem = regression(
        seen.covariance[0], seen.weight[0], units, 6, importance=calibration.sensitivity["conv2"]
    )
    order, losses = eliminate([problem], 6)
    assert nats.argsort().tolist() == order.tolist()
    share = nats[order] / torch.cummax(losses, 0).values  # a reader's weight is the same throughout
    torch.testing.assert_close(share, share[:1].expand(6), rtol=1e-9, atol=0)


def two_layers() -> tuple[list[ChannelGroup], Calibration, nn.Linear]:
    """A network whose one group is read by a linear layer, which sees each image once."""
    torch.manual_seed(0)
    reader = nn.Linear(12, 7)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), reader, nn.Tanh(), nn.Linear(7, 3)).double().eval()
    x = torch.randn(200, 6, dtype=torch.float64)
    groups = [g for g in find_groups(model, x[:1]) if any(m.layer == "2" for m in g.consumers)]
    return groups, calibrate(model, groups, list(x.split(64)), samples=True), reader


def test_the_command_scores_what_the_function_of_samples_says() -> None:
    """Each position given all others, and backward elimination, on the same data: to 1e-6."""
    groups, calibration, _ = two_layers()
    parents, children = calibration.samples["2"]
    importance = calibration.sensitivity["2"].double()
    assert float(importance.max()) > 1.1 * float(importance.min())
    single = score(groups, calibration, backward=False).nats["0"]
    expected = gaussian(children, parents, importance=importance).mean(0)
    assert float(expected.min()) > 1e-4
    assert torch.allclose(single, expected, rtol=1e-6, atol=0)
    nats = score(groups, calibration).nats["0"]
    found = backward_elimination(children, parents, importance=importance)
    assert nats.argsort().tolist() == found.order.tolist()
    assert torch.allclose(nats[found.order], torch.cummax(found.loss, 0).values, rtol=1e-6, atol=0)


def test_the_plan_takes_positions_in_that_order() -> None:
    model, x = build("chain"), images("chain", 24)
    groups = find_groups(model, x[:1])
    found = score(groups, calibrate(model, groups, [x]))
    for cut in plan(groups, found, Budget(0.4, round_to=1)).groups:
        order = found.nats[cut.group].argsort().tolist()
        assert set(cut.removed) == set(order[: len(cut.removed)])


def test_a_channel_that_nobody_reads_goes_first() -> None:
    model = build("chain")
    assert isinstance(model, Chain)
    with torch.no_grad():
        model.conv2.weight[:, 3] = 0
        model.fc.weight[:, 1] = 0
    nats = scored(model, "chain").nats
    assert nats["conv1"].argmin() == 3 and nats["conv2"].argmin() == 1
    assert float(nats["conv1"].min()) < 1e-6 < 1e-3 * float(nats["conv1"].max())


def copies() -> nn.Module:
    """Channel 1 of left and channel 0 of right say the same, and both are read."""
    model = build("concat")
    assert isinstance(model, Concat)
    assert model.left.bias is not None and model.right.bias is not None
    with torch.no_grad():
        model.right.weight[0] = model.left.weight[1]
        model.right.bias[0] = model.left.bias[1] = 0.3
    return model


def test_copies_in_two_groups_do_not_both_go() -> None:
    """Each alone could go at no price; once one has gone, the other has no substitute."""
    nats = scored(copies(), "concat").nats
    first, second = sorted([float(nats["left"][1]), float(nats["right"][0])])
    everything = torch.cat([nats["left"], nats["right"]])
    assert first == everything.min()
    assert second > 10 * first
    assert int((everything < second).sum()) >= 2  # at least one unrelated channel goes before it


def test_a_plan_keeps_one_of_two_copies() -> None:
    model, x = copies(), images("concat", 24)
    groups = find_groups(model, x[:1], ignore=["join"])
    found = score(groups, calibrate(model, groups, [x]))
    gone = {g.group: g.removed for g in plan(groups, found, Budget(0.2, round_to=1, cost="params")).groups}
    assert sum(map(len, gone.values())) == 2
    assert (1 in gone["left"]) != (0 in gone["right"])


def test_groups_are_joint_only_where_they_share_a_reader() -> None:
    """What left scores depends on right, which join reads too, and not on join's own channels."""
    model, other = copies(), copies()
    assert isinstance(other, Concat)
    with torch.no_grad():
        other.fc.weight.mul_(torch.rand(3, 5, generator=torch.Generator().manual_seed(0)))

    def alike(network: nn.Module) -> Mapping[str, torch.Tensor]:
        """All outputs count the same: what comes behind a layer makes no difference to its inputs."""
        x = images("concat", 24)
        groups = find_groups(network, x[:1])
        return score(groups, replace(calibrate(network, groups, [x]), sensitivity={})).nats

    one, two = alike(model), alike(other)
    assert torch.equal(one["left"], two["left"]) and not torch.equal(one["join"], two["join"])
    with torch.no_grad():
        other.right.weight.mul_(-1)
    three = alike(other)
    assert not torch.equal(one["left"], three["left"])


def test_every_reader_counts() -> None:
    """A stream's channel that two of its three readers ignore is not free yet."""
    model = build("residual")
    x = images("residual", 24)
    groups = find_groups(model, x[:1])
    (stream,) = [g for g in groups if "stem" in g.producers]
    losses = []
    for reader in stream.consumers:
        weight = model.get_submodule(reader.layer).weight
        assert isinstance(weight, nn.Parameter)
        weight.data[:, 2] = 0
        losses.append(float(score(groups, calibrate(model, groups, [x])).nats[stream.name][2]))
    assert len(losses) == 3 and min(losses[:2]) > 1e-4 and losses[2] < 1e-9


def test_blocks_score_as_one() -> None:
    nats = scored(build("grouped"), "grouped", blocks=2).nats
    assert nats["conv1"][0] == nats["conv1"][1] and nats["conv1"][2] == nats["conv1"][3]
    assert nats["conv1"][0] != nats["conv1"][2]


def test_progress_ends_at_the_total() -> None:
    model, x = build("chain"), images("chain", 8)
    groups = find_groups(model, x[:1])
    calls: list[tuple[str, int, int]] = []
    score(groups, calibrate(model, groups, [x]), progress=lambda *call: calls.append(call))
    assert calls == [("score", done, 11) for done in range(1, 12)]


def without_samples() -> tuple[list[ChannelGroup], Calibration]:
    model, x = build("chain"), images("chain", 8)
    groups = find_groups(model, x[:1])
    return groups, calibrate(model, groups, [x])


def test_an_estimator_of_samples_needs_samples() -> None:
    groups, calibration = without_samples()
    with pytest.raises(MintError, match="no samples of layer"):
        score(groups, calibration, estimator="gmi")
    with pytest.raises(MintError, match="Unknown estimator 'gim'"):
        score(groups, calibration, estimator="gim")
    calibration = Calibration({}, {}, 8, 0)
    with pytest.raises(MintError, match="no moments of layer conv2"):
        score(groups, calibration)


def test_samples_are_scored_position_by_position() -> None:
    model, x = build("concat"), images("concat", 40)
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, [x], moments=False, samples=True)
    found = score(groups, calibration, estimator="gmi")
    assert {n: len(v) for n, v in found.nats.items()} == {"left": 4, "right": 3, "join": 5}
    again = score(groups, calibration, estimator="gmi")
    assert all(torch.equal(v, again.nats[n]) for n, v in found.nats.items())


def test_a_channel_group_that_is_dead_says_nothing_and_stops_nothing() -> None:
    """Behind the second convolution's last four outputs the ReLU is never open."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 3))
    with torch.no_grad():
        layers[2].bias[4:] = -100  # type: ignore[index]
    x = torch.randn(32, 3, 8, 8)
    groups = find_groups(model.eval(), x[:1])
    calibration = calibrate(model, groups, [x])
    assert not calibration.sensitivity["2"][4:].any()
    nats = score(groups, calibration).nats
    assert all(bool(values.isfinite().all()) for values in nats.values())
    # a position of the first layer is a channel of each channel group, and only the live one counts
    seen, units = calibration.moments["2"], torch.arange(4).repeat_interleave(9)
    live = regression(
        seen.covariance[0], seen.weight[0], units, 4, importance=calibration.sensitivity["2"][:4]
    )
    order, losses = eliminate([live], 4)
    assert nats["0"].argsort().tolist() == order.tolist()
    share = nats["0"][order] / torch.cummax(losses, 0).values
    torch.testing.assert_close(share, torch.full_like(share, 1 / 8), rtol=1e-9, atol=0)
    plan(groups, ChannelScores(nats, "gaussian", 32, 0), Budget(0.4, round_to=1))


@pytest.mark.parametrize("columns", [8192, 4])
def test_a_constant_channel_goes_first_however_wide_its_reader(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias takes it up, whatever the weights it is multiplied with."""
    monkeypatch.setattr("mint_compress.scoring.moment_forms.MAX_COLUMNS", columns)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0, 2.0
    x = torch.randn(256, 6)
    groups = find_groups(model, x[:1])
    calibration = calibrate(model, groups, list(x.split(100)))
    assert calibration.moments["2"].form == ("patches" if columns == 8192 else "contributions")
    nats = score(groups, calibration).nats["0"]
    assert nats.argmin() == 3 and float(nats[3]) < 0.01 * float(nats.median())
