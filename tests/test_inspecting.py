"""Inspection: what hangs on a group, counted by hand, and a largest ratio that compress() agrees with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Chain, build, images
from torch import nn

from mint_compress import MintError, compress, find_groups, load_model, save
from mint_compress.checkpoints.loading import Builder
from mint_compress.inspecting import Inspection, inspect_model, inspected
from mint_compress.nn.counting import layer_macs, parameters
from mint_compress.planning.search import most_removed
from mint_compress.settings import Budget
from mint_compress.zoo import BUILDERS


def look(name: str, **given: Any) -> Inspection:
    model = build(name)
    return inspect_model(model, input_shape=tuple(images(name).shape[1:]), **{"round_to": 1, **given})


# One of a group's layers -> what hangs on the group: the tensors, or parts of them, that go with its channels
def chain(m: Any) -> dict[str, list[torch.Tensor]]:
    return {
        "conv1": [m.conv1.weight, m.bn1.weight, m.bn1.bias, m.conv2.weight],
        "conv2": [m.conv2.weight, m.conv2.bias, m.fc.weight],
        "fc": [m.fc.weight, m.fc.bias],
    }


def residual(m: Any) -> dict[str, list[torch.Tensor]]:
    def inner(b: Any) -> list[torch.Tensor]:
        return [b.conv1.weight, b.bn1.weight, b.bn1.bias, b.conv2.weight]

    into = [m.stem.weight, m.stem.bias, m.a.conv2.weight, m.a.conv2.bias, m.b.conv2.weight, m.b.conv2.bias]
    return {
        "stem": [*into, m.a.conv1.weight, m.b.conv1.weight, m.fc.weight],
        "a.conv1": inner(m.a),
        "b.conv1": inner(m.b),
        "fc": [m.fc.weight, m.fc.bias],
    }


def concat(m: Any) -> dict[str, list[torch.Tensor]]:
    return {
        "left": [m.left.weight, m.left.bias, m.join.weight[:, :4]],
        "right": [m.right.weight, m.right.bias, m.join.weight[:, 4:]],
        "join": [m.join.weight, m.join.bias, m.fc.weight],
        "fc": [m.fc.weight, m.fc.bias],
    }


def called_twice(m: Any) -> dict[str, list[torch.Tensor]]:
    # the weight between two channels of the group goes once
    everything = [m.stem.weight, m.stem.bias, m.shared.weight, m.shared.bias, m.fc.weight]
    return {"stem": everything, "fc": [m.fc.weight, m.fc.bias]}


def layer_scale(m: Any) -> dict[str, list[torch.Tensor]]:
    stream = [m.stem.weight, m.stem.bias, m.branch.weight, m.branch.bias, m.scale, m.fc.weight]
    return {"stem": stream, "fc": [m.fc.weight, m.fc.bias]}


@pytest.mark.parametrize("by_hand", [chain, residual, concat, called_twice, layer_scale])
def test_parameters_of_a_group_are_those_counted_by_hand(by_hand: Any) -> None:
    name = by_hand.__name__
    expected = {one: sum(t.numel() for t in parts) for one, parts in by_hand(build(name)).items()}
    groups = look(name).groups
    # groups are named after the layer that the tracer met first, which is not the point here
    assert {one: g.parameters for one in expected for g in groups if one in g.producers} == expected
    assert len(groups) == len(expected)


def test_the_json_of_a_chain_is_exactly_this() -> None:
    model = build("chain")
    macs = sum(layer_macs(model, (images("chain"),)).values())
    # half of 6 and half of 5, rounded down, may go: what is left is a chain of 3 and 3
    most = 1 - parameters(Chain(3, 3)) / parameters(model)
    found = look("chain", upper_limit=0.5).to_dict()
    assert found.pop("most_ratio") == pytest.approx(most, abs=1e-12)
    gone = 1 - sum(layer_macs(Chain(3, 3), (images("chain"),)).values()) / macs
    assert found.pop("most_macs_ratio") == pytest.approx(gone, abs=1e-12)
    assert found == {
        "format": 1,
        "model": "Chain",
        "input_shape": [3, 6, 6],
        "parameters": parameters(model),
        "macs": macs,
        "upper_limit": 0.5,
        "round_to": 1,
        "groups": [
            group("conv1", 6, 3, 162 + 12 + 270, ["conv2"]),
            group("conv2", 5, 3, 270 + 5 + 20, ["fc"]),
            group("fc", 4, 4, 24, [], "head: its channels are the network's outputs"),
        ],
        "notes": [],
    }
    assert json.loads(look("chain", upper_limit=0.5).to_json())["most_ratio"] == pytest.approx(most)


def group(
    name: str, width: int, least: int, count: int, consumers: list[str], reason: str | None = None
) -> dict[str, Any]:
    return {
        **{"name": name, "width": width, "least": least, "parameters": count, "producers": [name]},
        **{"consumers": consumers, "prunable": reason is None, "reason": reason},
    }


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("residual", {"round_to": 1, "upper_limit": 0.7}),
        ("concat", {"round_to": 2, "upper_limit": 0.95}),
        ("depthwise", {"round_to": 4, "upper_limit": 0.6}),
        ("grouped", {"round_to": 1, "upper_limit": 0.5, "ignore": ("conv1",)}),
    ],
)
def test_compress_reaches_the_largest_ratio_and_refuses_a_larger_one(
    name: str, given: dict[str, Any]
) -> None:
    model, shape = build(name), tuple(images(name).shape[1:])
    found = look(name, **given)
    quick = {"input_shape": shape, "epochs": 0, "calibration_images": 16, "device": "cpu", **given}
    one = 0.5 / parameters(model)
    pruned, report = compress(model, ratio=found.most_ratio - one, **quick)
    assert report.ratio.removed == pytest.approx(found.most_ratio, abs=1e-12)
    assert parameters(pruned) == round((1 - found.most_ratio) * found.parameters)
    assert report.plan is not None
    kept = {g["group"]: len(g["kept"]) for g in report.plan["groups"]}
    assert kept == {g.name: g.least for g in found.groups if g.prunable}
    with pytest.raises(MintError, match="cannot go: the most is"):
        compress(model, ratio=found.most_ratio + one, **quick)


def test_every_reason_is_told_and_nothing_prunable_is_a_ratio_of_zero() -> None:
    groups = find_groups(build("auxiliary"), images("auxiliary"), ignore=("conv2",))
    found = look("auxiliary", ignore=("conv2",))
    assert {g.name: (g.prunable, g.reason) for g in found.groups} == {
        g.name: (g.prunable, g.reason) for g in groups
    }
    assert [g.name for g in found.groups if g.prunable] == ["conv1"]
    assert all(g.reason and f"{g.reason}: {g.name}" in str(found) for g in found.groups if not g.prunable)
    found = look("auxiliary", ignore=("*",))
    assert (found.most_ratio, [g.prunable for g in found.groups]) == (0.0, [False] * 3)
    assert "Reachable   nothing can go with --upper-limit 0.95 --round-to 1" in str(found)
    head = next(g for g in found.groups if g.name == "fc")
    assert (head.parameters, head.width) == (24 + 28, 4)  # 5 x 4 and 4, and 6 x 4 and 4 of aux


def test_a_network_without_layers_has_no_groups() -> None:
    found = inspect_model(nn.Flatten(), input_shape=(3, 4))
    assert (found.groups, found.parameters, found.macs, found.most_ratio) == ((), 0, 0, 0.0)
    assert inspected([], None) == () and most_removed([]) is None
    assert "Groups      0 of 0 prunable" in str(found)


def test_a_pruned_file_is_inspected_as_it_is_now(tmp_path: Path) -> None:
    model = BUILDERS["mlp"](hidden=(32, 16)).eval()
    small, _ = compress(model, ratio=0.3, input_shape=(1, 28, 28), epochs=0, calibration_images=32)
    path = tmp_path / "small.safetensors"
    save(small, path, builder=Builder("zoo:mlp", {"hidden": [32, 16]}))
    found = inspect_model(path, input_shape=(1, 28, 28))
    assert found.model == str(path) and found.notes[:-1] == load_model(path).notes
    assert found.parameters == parameters(small) < parameters(model)
    widths = [layer.out_features for layer in small.modules() if isinstance(layer, nn.Linear)]
    assert [g.width for g in found.groups] == widths


def test_the_table_names_every_group_and_the_ratio_printed_can_be_asked_for() -> None:
    found = look("residual", upper_limit=0.7)
    lines = str(found).splitlines()
    by_name = {g.name: g for g in found.groups}
    rows = [row for row in map(str.split, lines) if row and row[0] in by_name]
    assert [row[0] for row in rows] == list(by_name) and len(rows) == 4
    for row in rows:
        g = by_name[row[0]]
        assert row[-3:] == [str(g.width), str(g.least) if g.prunable else "-", f"{g.parameters:,}"]
        assert row[1:4] == ["and", "2", "more"] if "stem" in g.producers else row[1] != "and"
    assert "  head: its channels are the network's outputs: fc" in [line.rstrip() for line in lines]
    said = float(lines[-2].split("--ratio ")[1].split()[0])
    assert found.most_ratio - 0.001 < said <= found.most_ratio
    said = float(lines[-2].split("--macs-ratio ")[1].strip(", "))
    assert found.most_macs_ratio - 0.001 < said <= found.most_macs_ratio
    assert lines[-1].split() == ["with", "--upper-limit", "0.7", "--round-to", "1"]


def test_the_model_is_left_as_it_was_and_the_input_must_be_known() -> None:
    model = build("residual").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inspect_model(model, input_shape=(3, 6, 6))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(MintError, match="Give --input-shape"):
        inspect_model(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"upper_limit": 1.5}, "upper-limit must lie between 0 and 1, not 1.5."),
        ({"round_to": 0}, "round-to must be a whole number, at least 1, not 0."),
        ({"input_shape": (3, -1)}, "input-shape must be positive whole numbers"),
        ({"model": "absent.pt"}, "No such model file: 'absent.pt'."),
    ],
)
def test_what_cannot_be_inspected_is_refused_first(given: dict[str, Any], message: str) -> None:
    model = given.pop("model", build("chain"))
    with pytest.raises(MintError) as caught:
        inspect_model(model, **{"input_shape": (3, 6, 6), **given})
    assert str(caught.value).startswith(message)


def test_the_most_that_can_go_is_what_the_groups_say() -> None:
    model = build("concat")
    groups = find_groups(model, images("concat"))
    plan = most_removed(groups, Budget(upper_limit=0.5, round_to=1))
    assert plan is not None
    assert {cut.group: len(cut.kept) for cut in plan.groups} == {"left": 2, "right": 2, "join": 3}
