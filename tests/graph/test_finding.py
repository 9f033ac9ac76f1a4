"""Channel groups: exact member maps, and what is refused, with the reason."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import NETWORKS, Chain, Mixer, NormFree, build, conv, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress.checkpoints.loading import load
from mint_compress.checkpoints.saving import save
from mint_compress.errors import MintError
from mint_compress.exporting.receipt_modules import check_modules
from mint_compress.graph.choosing import proved
from mint_compress.graph.depgraph import TorchPruning
from mint_compress.graph.engine_comparison import Map, channel_map
from mint_compress.graph.engines import Found, Refused
from mint_compress.graph.finding import after_trial, find_groups
from mint_compress.graph.groups import ChannelGroup, consumer_units, unit_offsets
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.reference import reference_copy, reference_run
from mint_compress.nn.counting import parameters
from mint_compress.planning.choices import make_plan
from mint_compress.surgery.pruning import prune_
from mint_compress.zoo import BUILDERS


def groups_of(name: str, **options: Any) -> dict[str, ChannelGroup]:
    return {g.name: g for g in find_groups(build(name), images(name), **options)}


def members(group: ChannelGroup) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """(layer, side) -> (channels, positions)."""
    return {(m.layer, m.side): (m.channels.tolist(), m.positions.tolist()) for m in group.members}


def straight(width: int) -> tuple[list[int], list[int]]:
    return list(range(width)), list(range(width))


def prunable(groups: dict[str, ChannelGroup]) -> set[str]:
    return {name for name, g in groups.items() if g.prunable}


HEAD = "head: its channels are the network's outputs"


def test_chain() -> None:
    groups = groups_of("chain")
    assert prunable(groups) == {"conv1", "conv2"}
    assert members(groups["conv1"]) == {
        ("conv1", "out"): straight(6),
        ("bn1", "both"): straight(6),
        ("conv2", "in"): straight(6),
    }
    assert members(groups["conv2"]) == {("conv2", "out"): straight(5), ("fc", "in"): straight(5)}
    assert groups["conv1"].producers == ("conv1",)
    assert [m.layer for m in groups["conv1"].consumers] == ["conv2"]
    assert groups["fc"].reason == HEAD


def test_residual_stream_is_one_group() -> None:
    groups = groups_of("residual")
    (stream,) = [g for g in groups.values() if "stem" in g.producers]
    assert set(stream.producers) == {"stem", "a.conv2", "b.conv2"}
    assert {m.layer for m in stream.consumers} == {"a.conv1", "b.conv1", "fc"}
    assert all(m == straight(4) for m in members(stream).values())
    assert prunable(groups) == {stream.name, "a.conv1", "b.conv1"}
    assert members(groups["b.conv1"]) == {
        ("b.conv1", "out"): straight(5),
        ("b.bn1", "both"): straight(5),
        ("b.conv2", "in"): straight(5),
    }


def test_concat_feeds_two_groups_to_one_reader() -> None:
    groups = groups_of("concat")
    assert prunable(groups) == {"left", "right", "join"}
    assert members(groups["left"])["join", "in"] == straight(4)
    assert members(groups["right"])["join", "in"] == ([4, 5, 6], [0, 1, 2])
    units = consumer_units(list(groups.values()))
    offsets = unit_offsets(list(groups.values()))
    left, right = offsets["left"], offsets["right"]
    assert units["join"].tolist() == [*range(left, left + 4), *range(right, right + 3)]


def test_concat_onto_a_stream() -> None:
    groups = groups_of("concat_onto_stream")
    (wide,) = [g for g in groups.values() if "wide" in g.producers]
    assert wide.prunable and wide.width == 7
    assert members(wide)["left", "out"] == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert members(wide)["right", "out"] == ([0, 1, 2], [4, 5, 6])


def test_depthwise_goes_with_its_inputs() -> None:
    groups = groups_of("depthwise")
    (inner,) = [g for g in groups.values() if "expand" in g.producers]
    assert inner.prunable
    assert members(inner) == {
        ("expand", "out"): straight(6),
        ("bn1", "both"): straight(6),
        ("dw", "both"): straight(6),
        ("bn2", "both"): straight(6),
        ("project", "in"): straight(6),
    }
    assert {m.kind for m in inner.members if m.layer == "dw"} == {"depthwise"}


def test_grouped_convolution_folds_its_channel_groups() -> None:
    groups = groups_of("grouped")
    assert groups["conv1"].width == 4 and groups["conv2"].width == 3
    fold4, fold3 = (list(range(8)), [0, 1, 2, 3] * 2), (list(range(6)), [0, 1, 2] * 2)
    assert members(groups["conv1"]) == {("conv1", "out"): fold4, ("conv2", "in"): fold4}
    assert members(groups["conv2"]) == {("conv2", "out"): fold3, ("conv3", "in"): fold3}
    assert prunable(groups) == {"conv1", "conv2", "conv3"}


def test_flatten_gives_every_channel_its_pixels() -> None:
    groups = groups_of("flatten")
    assert members(groups["conv"])["fc1", "in"] == (list(range(24)), [c for c in range(4) for _ in range(6)])
    assert prunable(groups) == {"conv", "fc1"}


def test_padded_shortcut_is_refused_and_inner_channels_are_not() -> None:
    groups = groups_of("padded")
    assert prunable(groups) == {"a.conv1", "b.conv1"}
    (stream,) = [g for g in groups.values() if "conv1" in g.producers]
    assert stream.reason == "its channels meet values of a fixed width"


def test_resnet20_keeps_its_stream_and_gives_its_inner_channels() -> None:
    model = BUILDERS["resnet20_cifar"]()
    groups = {g.name: g for g in find_groups(model, torch.randn(1, 3, 32, 32))}
    assert prunable(groups) == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)}
    assert [groups[f"layer{s}.1.conv1"].width for s in (1, 2, 3)] == [16, 32, 64]


def test_squeeze_excite_belongs_to_the_layer_it_scales() -> None:
    groups = groups_of("squeeze_excite")
    (scaled,) = [g for g in groups.values() if "conv" in g.producers]
    assert scaled.prunable and set(scaled.producers) == {"conv", "expand"}
    assert {m.layer for m in scaled.consumers} == {"reduce", "after"}
    assert groups["reduce"].prunable and groups["after"].prunable


@pytest.mark.parametrize("name", ["split", "split_backwards"])
def test_halves_are_parts_in_whichever_order_they_are_read(name: str) -> None:
    """chunk() cuts in the middle of what is left."""
    group = groups_of(name)["conv"]
    assert group.prunable and group.parts is not None and group.parts.tolist() == [0] * 4 + [1] * 4


def test_channels_split_by_sizes_in_the_forward_pass_are_refused() -> None:
    group = groups_of("uneven_split")["conv"]
    assert not group.prunable
    assert group.reason is not None
    assert group.reason.startswith(("wrong channel map", "its channels cannot be removed"))


def test_a_wrong_map_of_two_channels_is_found_by_taking_out_each() -> None:
    """No permutation tells the map of two channels from the swapped one."""
    model, image = build("pair"), images("pair")
    (right,) = (g for g in find_groups(model, image) if g.name == "conv1")
    assert right.prunable and right.width == 2
    made, read = right.members
    wrong = replace(right, members=(made, replace(read, channels=read.channels[::-1].copy())))
    reference = reference_run(*reference_copy(model, (image,)))
    assert [g.prunable for g in proved(reference, [right, wrong])] == [True, False]


class ChunkAndJoin(nn.Module):
    """After removal nothing fails here, and still each half holds channels of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.conv(x)).chunk(2, 1)
        x = torch.cat([second, first], 1)
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Sliced(ChunkAndJoin):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = torch.cat([x[:, :4] * 2, x[:, 4:]], 1)
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class SlicedFromTheEnd(ChunkAndJoin):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = torch.cat([x[:, :-4] * 2, x[:, -4:]], 1)
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


class ChunkAndScale(ChunkAndJoin):
    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.conv(x)).chunk(2, 1)
        x = torch.cat([first * 2, second], 1)
        return self.fc(F.relu(self.after(x)).mean((2, 3)))  # type: ignore[no-any-return]


def refused(model: nn.Module) -> bool:
    """Whether the channels of ``conv`` are, or the whole network is, with a reason."""
    try:
        groups = find_groups(model.eval(), torch.randn(1, 3, 8, 8))
    except MintError as error:
        return str(error).startswith("The network could not be traced")
    return not any(g.prunable for g in groups if g.name == "conv")


@pytest.mark.parametrize("model", [Sliced(), SlicedFromTheEnd()])
def test_a_place_written_into_forward_is_never_silently_wrong(model: nn.Module) -> None:
    assert refused(model)


@pytest.mark.parametrize("model", [ChunkAndJoin(), ChunkAndScale()])
def test_the_middle_of_what_is_left_is_right_only_if_both_halves_lose_as_many(model: nn.Module) -> None:
    image = torch.randn(1, 3, 8, 8)
    groups = find_groups(model.eval(), image)
    for gone, right in (([0, 1, 4, 7], True), ([0, 1, 4], False), ([0, 1], False)):
        plan = make_plan(groups, {"conv": np.isin(np.arange(8), gone)}, asked=None)
        (tried,) = (g for g in after_trial(model, image, groups, plan) if g.name == "conv")
        assert tried.prunable == right, tried.reason


def test_a_dead_layer_cannot_be_proved() -> None:
    model = build("squeeze_excite")
    nn.init.constant_(model.get_submodule("reduce").bias, -99)  # type: ignore[arg-type]
    (group,) = [g for g in find_groups(model, images("squeeze_excite")) if g.name == "reduce"]
    assert group.reason == "map not verifiable: the outputs do not depend on it"


def test_layer_norm_mlp() -> None:
    groups = groups_of("norm_mlp")
    assert members(groups["fc1"]) == {
        ("fc1", "out"): straight(8),
        ("norm", "both"): straight(8),
        ("fc2", "in"): straight(8),
    }
    assert prunable(groups) == {"fc1", "fc2"}


def test_bare_parameter() -> None:
    groups = groups_of("layer_scale")
    (stream,) = [g for g in groups.values() if "stem" in g.producers]
    assert stream.prunable and members(stream)["scale", "both"] == straight(6)
    (member,) = [m for m in stream.members if m.layer == "scale"]
    assert member.kind == "parameter" and member.dim % 3 == 0
    layers = stream.network.layers
    assert (layers["scale"].outputs, layers["scale"].parameters) == (6, 6)


def test_prelu_with_one_slope_and_with_many() -> None:
    groups = groups_of("prelu")
    assert set(members(groups["conv1"])) == {("conv1", "out"), ("conv2", "in")}
    assert members(groups["conv2"])["act2", "both"] == straight(6)
    assert prunable(groups) == {"conv1", "conv2"}


def test_transposed_and_one_dimensional() -> None:
    assert prunable(groups_of("transposed")) == {"conv1", "up", "conv2"}
    assert prunable(groups_of("one_dimensional")) == {"conv1", "conv2"}


def test_an_auxiliary_head_is_a_reader_like_others() -> None:
    groups = groups_of("auxiliary")
    assert prunable(groups) == {"conv1", "conv2"}
    assert members(groups["conv1"])["aux", "in"] == straight(6)
    assert [m.layer for m in groups["conv1"].consumers] == ["conv2"]  # what there is to learn from
    assert groups["fc"].producers == ("fc", "aux") and groups["fc"].reason == HEAD


class Noisy(Chain):
    """In training, an auxiliary head looks at the channels through noise."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.aux(F.dropout(self.conv1(x)).mean((2, 3))) if self.training else y


class Failing(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("one value per channel")
        return Chain.forward(self, x)


def test_an_auxiliary_head_that_cannot_be_proved_holds_what_it_reads() -> None:
    groups = {g.name: g for g in find_groups(Noisy().eval(), images("chain"))}
    assert groups["conv1"].reason == "only training uses a layer, and not twice in the same way (aux)"
    assert prunable(groups) == {"conv2"}


def test_an_auxiliary_head_that_cannot_be_reached_has_a_line_of_its_own() -> None:
    groups = {g.name: g for g in find_groups(Failing().eval(), images("chain"))}
    assert groups["aux"].reason == "not traced: the forward pass does not reach it"
    assert prunable(groups) == {"conv1", "conv2"}


def test_a_module_called_twice_is_its_own_reader() -> None:
    (group,) = [g for g in groups_of("called_twice").values() if g.prunable]
    assert members(group) == {
        ("stem", "out"): straight(5),
        ("shared", "out"): straight(5),
        ("shared", "in"): straight(5),
        ("fc", "in"): straight(5),
    }


def test_normalisations_without_parameters() -> None:
    groups = groups_of("plain_norms")
    assert prunable(groups) == {"conv1", "conv2", "conv3", "conv4"}
    assert groups["conv3"].width == 4  # a position is a channel of both groups of the GroupNorm
    assert members(groups["conv3"])["norm3", "both"] == (list(range(8)), [0, 1, 2, 3] * 2)


@pytest.mark.parametrize(
    ("name", "group", "reason"),
    [
        ("tied_weights", "a", "its layers share a parameter (a and b)"),
        ("tied_weights", "stem", "its layers share a parameter (a and b)"),
        (
            "tracked_instance_norm",
            "conv1",
            "its channels cannot be removed: the network then fails (RuntimeError: running_mean",
        ),
        ("wide_layer_norm", "conv1", "LayerNorm normalises more than the channels (norm)"),
        ("wide_layer_norm_affine", "conv1", "LayerNorm normalises more than the channels (norm)"),
        (
            "fixed_shape",
            "conv1",
            "its channels cannot be removed: the network then fails (RuntimeError: shape",
        ),
        ("grouped_transposed", "up", "its channels cannot be removed"),
        ("multiplier", "conv1", "only one channel"),
        ("divider", "dw", "only one channel"),
    ],
)
def test_refused_with_the_reason(name: str, group: str, reason: str) -> None:
    found = groups_of(name)[group]
    assert not found.prunable
    assert found.reason is not None and found.reason.startswith(reason)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_accounted_for(name: str) -> None:
    groups = groups_of(name)
    for group in groups.values():
        assert group.prunable == (group.reason is None)
    produced = {m.layer for g in groups.values() for m in g.members if m.side != "in"} | set(groups)
    model = build(name)
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)} <= produced
    network = next(iter(groups.values())).network
    assert network.parameters == parameters(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_left_as_it_was(name: str) -> None:
    model = build(name).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = find_groups(model, images(name))
    assert any(g.prunable for g in found)  # frozen networks are traced all the same
    assert all(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_ignored_with_children() -> None:
    groups = groups_of("residual", ignore=["a"])
    assert groups["a.conv1"].reason == "ignored by the user (a.conv1)"
    (stream,) = [g for g in groups.values() if "stem" in g.producers]
    assert stream.reason == "ignored by the user (a.conv2)"
    assert prunable(groups) == {"b.conv1"}


def test_ignoring_what_only_passes_channels_on_keeps_them_too() -> None:
    assert "conv1" not in prunable(groups_of("chain", ignore=["bn*"]))
    assert prunable(groups_of("depthwise", ignore=["dw"])) == {"project"}


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(MintError, match=r"'nothing\*' matches no layer. Layers are named like conv1, bn1"):
        groups_of("chain", ignore=["conv1", "nothing*"])


class Fails(nn.Module):
    def __init__(self, message: str) -> None:
        super().__init__()
        self.conv, self.message = nn.Conv2d(3, 3, 3), message

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError(self.message)


@pytest.mark.parametrize("message", ["", "wrong size\nand more"])
def test_a_forward_that_fails_is_one_line(message: str) -> None:
    with pytest.raises(MintError, match="The network could not be traced: AssertionError") as raised:
        find_groups(Fails(message), torch.randn(1, 3, 4, 4))
    assert "\n" not in str(raised.value)


def test_a_constant_image_will_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False))
    model.append(nn.Flatten()).append(nn.Linear(16, 2))
    found = {g.name: g.prunable for g in find_groups(model, torch.zeros(1, 3, 6, 6))}
    assert found == {"0": True, "2": True, "4": False}


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.after(self.conv(x).sort(1).values))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class ChannelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.after(F.channel_shuffle(self.conv(x), 2)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Sorted(), ChannelShuffle()])
def test_what_the_graph_does_not_know_is_refused(model: nn.Module) -> None:
    assert refused(model)


def test_transformer() -> None:
    groups = groups_of("transformer")
    assert prunable(groups) == {"patches", "fc1"}
    assert members(groups["fc1"]) == {("fc1", "out"): straight(12), ("fc2", "in"): straight(12)}
    stream = members(groups["patches"])
    assert set(groups["patches"].producers) == {"patches", "attention.proj", "fc2"}
    assert stream["token", "both"] == stream["places", "both"] == stream["head", "in"] == straight(8)
    # the number of heads is written into its forward, and no class that is known
    heads = groups["attention.qkv"]
    assert heads.width == 2 and not heads.prunable
    assert members(heads)["attention.qkv", "out"][1] == [0, 0, 0, 1, 1, 1] * 3
    assert members(heads)["attention.proj", "in"][1] == [0, 0, 0, 1, 1, 1]


class ConvAttention(nn.Module):
    """Attention of convolutions: many places, which Torch-Pruning's index maps take for channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = conv(3, 8), conv(8, 6, 1), conv(8, 6, 1), conv(8, 8, 1)
        self.inner, self.outer = conv(8, 12, 1), conv(12, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        x = x + (v @ (q.transpose(1, 2) @ k).softmax(-1)).reshape(x.shape)
        x = x + self.outer(F.relu(self.inner(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_attention_of_convolutions_is_followed_and_not_left_to_the_graph() -> None:
    model, x = ConvAttention().eval(), torch.randn(1, 3, 12, 12)
    recorder = Recorder(model)
    recorder.run((x,))
    assert recorder.recording().needs_labels == "channels are multiplied with channels"
    groups = {g.name: g for g in find_groups(model, x)}
    assert prunable(groups) == {"stem", "inner"} and groups["q"].reason == "no layer reads it"
    assert members(groups["q"]) == {("q", "out"): straight(6), ("k", "out"): straight(6)}


class Growing(nn.Module):
    """Values that are cubed again and again: only the normalisations keep them finite."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norms = nn.Linear(5, 6), nn.ModuleList(nn.LayerNorm(6) for _ in range(9))
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 10 * self.embed(x)
        for norm in self.norms:
            x = norm(x) ** 3
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


def test_values_do_not_overflow_where_statistics_are_left_out() -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert {g.name for g in find_groups(Growing().eval(), x) if g.prunable} == {"embed", "fc1"}


def test_windows_do_not_hide_the_channels() -> None:
    groups = groups_of("windows")
    assert prunable(groups) == {"patches", "fc1"}
    assert members(groups["fc1"]) == {("fc1", "out"): straight(7), ("fc2", "in"): straight(7)}


def test_what_mixes_places_stays_and_its_channels_do_not() -> None:
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    groups = {g.name: g for g in find_groups(Mixer().eval(), x)}
    assert prunable(groups) == {"patches", "fc1"}
    assert ("places1", "in") not in members(groups["patches"])
    assert groups["places1"].reason == "Linear mixes places, not channels (places1)"


def test_halves_that_scale_each_other_go_in_pairs() -> None:
    groups = groups_of("gated")
    assert members(groups["fc1"])["fc1", "out"] == (list(range(10)), [0, 1, 2, 3, 4] * 2)
    assert prunable(groups) == {"fc1", "fc2"}


def test_a_gate_in_one_operation_is_the_same() -> None:
    groups = groups_of("gated_convolutions")
    assert members(groups["conv1"])["conv1", "out"] == (list(range(10)), [0, 1, 2, 3, 4] * 2)
    assert members(groups["conv2"])["head", "in"] == straight(6)
    assert prunable(groups) == {"conv1", "conv2"}


def test_inside_a_shuffled_block_channels_are_free_and_outside_they_go_in_pairs() -> None:
    groups = groups_of("shuffled")
    assert prunable(groups) == {"inner1", "after", "stem"}
    assert members(groups["stem"])["after", "in"] == (list(range(8)), [0, 0, 1, 1, 2, 2, 3, 3])
    assert members(groups["after"]) == {("after", "out"): straight(4), ("fc", "in"): straight(4)}


def test_branches_that_are_added_up_go_together() -> None:
    groups = groups_of("selective_kernel")
    twice = list(range(12)), [0, 1, 2, 3, 4, 5] * 2
    assert members(groups["a"]) == {
        **{(layer, side): straight(6) for layer, side in (("a", "out"), ("b", "out"), ("weigh", "in"))},
        ("weigh", "out"): twice,
        ("after", "in"): straight(6),
    }


def test_pixel_shuffle_gives_every_position_four_channels() -> None:
    groups = groups_of("pixel_shuffled")
    assert members(groups["conv"]) == {
        ("conv", "out"): (list(range(16)), [p for p in range(4) for _ in range(4)]),
        ("after", "in"): straight(4),
    }
    assert prunable(groups) == {"conv", "after"}


def signature(found: list[ChannelGroup]) -> set[Map]:
    """What goes together, whatever it is called and in whichever order."""
    return {channel_map(g) for g in found if g.prunable}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_ways_to_the_same_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch-Pruning's graph is an oracle for the trace, where it is right as a whole."""
    first = find_groups(build(name), images(name))
    monkeypatch.setattr("mint_compress.graph.depgraph.VISITS", 0)
    assert signature(find_groups(build(name), images(name))) == signature(first)


def test_index_maps_that_grow_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_run(*reference_copy(build("flatten"), (images("flatten"),)))
    first = find_groups(build("flatten"), images("flatten"))
    assert isinstance(TorchPruning().groups(reference), Found)
    monkeypatch.setattr("mint_compress.graph.depgraph.INDICES", 20)  # four channels of six places are 24
    assert TorchPruning().groups(reference) == Refused("TooCostly: its search takes too many indices")
    assert signature(find_groups(build("flatten"), images("flatten"))) == signature(first)


def test_heads_of_timm_go_and_their_number_follows() -> None:
    from timm.layers.attention import Attention

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.head = nn.Linear(5, 12), Attention(12, 4), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head((x + self.attention(x)).mean(1))  # type: ignore[no-any-return]

    model, x = Block().eval(), torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    groups = {g.name: g for g in find_groups(model, x)}
    heads = groups["attention.qkv"]
    assert heads.prunable and heads.width == 4
    # without the third head, the network does what it does when nobody reads that head
    plan = make_plan(list(groups.values()), {heads.name: np.arange(4) == 2}, asked=0.1)
    expected = copy.deepcopy(model)
    expected.attention.proj.weight.data[:, 6:9] = 0
    prune_(model, plan)
    assert (model.attention.num_heads, model.attention.attn_dim) == (3, 9)
    assert model.attention.qkv.weight.shape == (27, 12)
    torch.testing.assert_close(model(x), expected(x), atol=1e-6, rtol=1e-5)


def test_a_gain_goes_with_the_filter_that_it_scales(tmp_path: Path) -> None:
    model, x = NormFree().eval(), torch.randn(2, 3, 6, 6)
    groups = find_groups(model, x)
    assert {g.name for g in groups if g.prunable} == {"stem", "conv1"}
    assert groups[0].network.parameters == parameters(model)
    plan = make_plan(groups, {"conv1": np.arange(8) % 2 == 0, "stem": np.arange(6) < 2}, asked=0.5)
    model.conv1.gain.data = torch.arange(8.0).reshape(8, 1, 1, 1)
    prune_(model, plan)
    assert model.conv1.gain.flatten().tolist() == [1, 3, 5, 7] and model.conv2.gain.shape[0] == 4
    assert check_modules(model, model, plan.left) == parameters(model)
    save(model, tmp_path / "a.safetensors")
    assert torch.equal(load(tmp_path / "a.safetensors", builder=NormFree)(x), model(x))


def test_channels_under_a_global_response_norm_go() -> None:
    from timm.layers.grn import GlobalResponseNorm

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.grn, self.fc2 = nn.Linear(5, 8), GlobalResponseNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.grn(F.relu(self.fc1(x)))).mean((1, 2))  # type: ignore[no-any-return]

    groups = {g.name: g for g in find_groups(Block().eval(), torch.randn(2, 4, 4, 5))}
    assert groups["fc1"].prunable
    assert members(groups["fc1"])["grn.weight", "both"] == straight(8)


def test_torchvision_vit_loses_hidden_channels_and_keeps_its_width_and_heads() -> None:
    from torchvision.models import VisionTransformer

    model, x = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3).eval(), torch.randn(2, 3, 16, 16)
    groups = {g.name: g for g in find_groups(model, x)}
    hidden = {f"encoder.layers.encoder_layer_{i}.mlp.0" for i in range(2)}
    assert prunable(groups) == hidden
    assert str(groups["conv_proj"].reason).startswith("MultiheadAttention reads and gives fixed widths")
    plan = make_plan(list(groups.values()), {n: np.arange(16) % 2 == 0 for n in hidden}, asked=0.1)
    expected = copy.deepcopy(model)
    for layer in expected.encoder.layers:
        layer.mlp[3].weight.data[:, ::2] = 0
    prune_(model, plan)
    assert model.hidden_dim == 8
    torch.testing.assert_close(model(x), expected(x), atol=1e-6, rtol=1e-5)


def test_multihead_attention_holds_its_stream_and_not_the_mlp() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    groups = {g.name: g for g in find_groups(nn.Sequential(nn.Linear(5, 8), model), torch.randn(2, 4, 5))}
    assert groups["1.linear1"].prunable and groups["1.linear1"].width == 12
    assert groups["0"].reason == "MultiheadAttention reads and gives fixed widths (1.self_attn)"


def test_the_same_groups_whenever_asked() -> None:
    one, other = (find_groups(Chain().eval(), images("chain")) for _ in range(2))
    assert [(g.name, g.prunable, members(g)) for g in one] == [
        (g.name, g.prunable, members(g)) for g in other
    ]


class InSinglePrecision(Chain):
    """Asks for float32 whatever it is given, as careful code for mixed precision does."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x.to(torch.float32)))).float()))
        return self.fc(x.mean((2, 3)).type(torch.float32))  # type: ignore[no-any-return]


def test_a_forward_that_insists_on_single_precision_is_analysed_in_double() -> None:
    model = InSinglePrecision().eval()
    groups = find_groups(model, torch.randn(1, 3, 6, 6))
    assert {g.name: g.prunable for g in groups} == {"conv1": True, "conv2": True, "fc": False}
    assert "forward" not in vars(model)


def test_inputs_by_name_are_lent_by_position() -> None:
    class Named(Chain):
        def forward(self, *, image: Tensor) -> Tensor:
            return super().forward(image)

    model = Named().eval()
    groups = find_groups(model, {"image": torch.randn(1, 3, 6, 6)})
    assert {g.name: g.prunable for g in groups} == {"conv1": True, "conv2": True, "fc": False}
    assert "forward" not in vars(model)


def test_two_heads_side_by_side_are_both_known() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.other = nn.Linear(6, 9), nn.Linear(9, 4), nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x).relu()
            return torch.cat([self.one(x), self.other(x)], 1)

    found = {g.name: (g.prunable, g.producers) for g in find_groups(TwoHeads(), torch.zeros(1, 6))}
    # Torch-Pruning's graph has no group for the second one
    assert found == {"body": (True, ("body",)), "one": (False, ("one",)), "other": (False, ("other",))}
