"""The importance inside a plain Torch-Pruning pruner: the channels with the lowest scores go, exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from networks import Grouped, build, images
from torch import Tensor, nn
from torch.nn import functional as F

from mint_compress import MintError, MutualInformationImportance
from mint_compress.nn.counting import parameters
from mint_compress.zoo import PaddedBlock


class SmallVGG(nn.Module):
    """Convolutions with normalisation, pooled and flattened into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


class CifarNet(nn.Module):
    """A stream of padded shortcuts, three stages wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(PaddedBlock(4, 4, 1), PaddedBlock(4, 8, 2), PaddedBlock(8, 16, 2))
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def network(name: str) -> tuple[nn.Module, Tensor]:
    own = {"vgg": SmallVGG, "cifar": CifarNet}
    if name not in own:
        return build(name), images(name, 48)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = own[name]()
    return model.eval(), torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def stepped(
    model: nn.Module, x: Tensor, importance: MutualInformationImportance, **options: Any
) -> dict[str, tuple[list[int], Tensor]]:
    """Prune one step; layer -> the channels that went, and the scores of all its channels."""
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(model, x[:1], importance, **options)
    whole = {g[0].dep.target.module: g for g in pruner.DG.get_all_groups()}
    scores = {names[m]: importance(g) for m, g in whole.items() if importance(g) is not None}
    widths = {names[m]: len(g[0].idxs) for m, g in whole.items()}
    assert all(len(s) == widths[name] and s.isfinite().all() for name, s in scores.items())
    gone = {}
    for group in pruner.step(interactive=True):
        name = names[group[0].dep.target.module]
        gone[name] = (sorted(group[0].idxs), scores[name])
        group.prune()
    return gone


def lowest(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(stable=True)[:count].tolist())


@pytest.mark.parametrize("name", ["residual", "vgg", "cifar", "padded", "depthwise", "concat", "flatten"])
def test_per_layer_the_lowest_half_goes(name: str) -> None:
    model, x = network(name)
    importance = MutualInformationImportance(model, x.split(16))
    before = parameters(model)
    gone = stepped(model, x, importance, pruning_ratio=0.5)
    assert gone
    for layer, (channels, scores) in gone.items():
        assert channels == lowest(scores, len(scores) - len(scores) // 2), layer
    with torch.no_grad():
        assert model(x[:3]).shape[0] == 3
    assert parameters(model) < before


@pytest.mark.parametrize("name", ["residual", "vgg", "cifar"])
def test_globally_everything_below_one_threshold_goes(name: str) -> None:
    model, x = network(name)
    importance = MutualInformationImportance(model, x.split(16))
    gone = stepped(model, x, importance, pruning_ratio=0.3, global_pruning=True)
    every = torch.cat([g for g in importance.scores.nats.values()])
    count = len(every) - int(len(every) * 0.7)
    threshold = every.sort().values[count - 1]
    assert sum(len(channels) for channels, _ in gone.values()) == count
    for channels, scores in gone.values():
        assert channels == (scores <= threshold).nonzero().flatten().tolist()
    with torch.no_grad():
        assert model(x[:3]).shape[0] == 3


def test_a_grouped_convolution_loses_the_same_offsets_of_each_channel_group() -> None:
    model, x = network("grouped")
    assert isinstance(model, Grouped)
    importance = MutualInformationImportance(model, x.split(16))
    assert importance.scores.nats["conv1"].shape == (4,)  # eight channels, in pairs
    gone = stepped(model, x, importance, pruning_ratio=0.5)
    for layer, width in (("conv1", 4), ("conv2", 3)):
        channels, scores = gone[layer]
        assert torch.equal(scores[:width], scores[width:])
        offsets = lowest(scores[:width], 2)
        assert channels == [*offsets, *(o + width for o in offsets)]
    assert (model.conv1.out_channels, model.conv2.in_channels, model.conv2.out_channels) == (4, 4, 2)
    assert model.conv2.groups == 2
    assert model(x[:3]).shape == (3, 3)


@pytest.mark.parametrize("name", ["cifar", "padded", "fixed_shape", "split", "tied_weights"])
def test_groups_that_cannot_be_proved_and_heads_are_passed_over(name: str) -> None:
    model, x = network(name)
    widths = {n: m.weight.shape for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    importance = MutualInformationImportance(model, x.split(16))
    left = {p for g in importance.groups if not g.prunable for p in g.producers}
    gone = stepped(model, x, importance, pruning_ratio=0.5)
    assert left and gone and not left & gone.keys()
    after = dict(model.named_modules())
    assert all(after[layer].weight.shape[0] == widths[layer][0] for layer in left)
    assert model(x[:3]).shape[0] == 3


def test_the_scores_are_those_of_score_and_differ_from_each_other() -> None:
    model, x = network("vgg")
    importance = MutualInformationImportance(model, [(batch, torch.zeros(16)) for batch in x.split(16)])
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    for name, layer in (("features.0", model.features[0]), ("classifier.0", model.classifier[0])):
        scores = importance(graph.get_pruning_group(layer, tp.prune_conv_out_channels, [3, 1]))  # partial
        nats = importance.scores.nats[name]
        assert scores is not None and torch.equal(scores, nats[[3, 1]])
        assert len(nats.unique()) == len(nats)
    other = MutualInformationImportance(model, x.split(16))
    for name, nats in importance.scores.nats.items():
        assert torch.equal(nats, other.scores.nats[name])


def test_scores_that_differ_by_the_last_bit_do_not_tie() -> None:
    model, x = network("concat_onto_stream")  # join: five channels, of which three outputs leave two free
    importance = MutualInformationImportance(model, x.split(16))
    graph = tp.DependencyGraph().build_dependency(model, x[:1])
    group = graph.get_pruning_group(model.get_submodule("join"), tp.prune_conv_out_channels, [0, 1, 2, 3, 4])
    scores = importance(group)
    assert scores is not None and len(scores.unique()) == 5


def test_the_network_is_left_as_it_was() -> None:
    model, x = network("cifar")
    model.train()
    model.stem.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    MutualInformationImportance(model, x.split(16))
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_step_by_step_with_a_new_importance_each_time() -> None:
    model, x = network("vgg")
    counts = [parameters(model)]
    for _ in range(3):
        importance = MutualInformationImportance(model, x.split(16))
        gone = stepped(model, x, importance, pruning_ratio=0.25)
        for channels, scores in gone.values():
            assert channels == lowest(scores, len(channels))
        counts.append(parameters(model))
    assert counts == sorted(set(counts), reverse=True)
    # widths 8, 12, 16 and 10, of which a quarter went three times
    assert [model.features[i].out_channels for i in (0, 4, 8)] == [3, 4, 6]
    assert model(x[:3]).shape == (3, 4)


def test_an_old_importance_is_refused_after_a_step() -> None:
    model, x = network("chain")
    importance = MutualInformationImportance(model, x.split(16))
    stepped(model, x, importance, pruning_ratio=0.5)
    with pytest.raises(MintError, match=r"was scored \d wide and is \d wide now\. Make a new"):
        tp.pruner.BasePruner(model, x[:1], importance, pruning_ratio=0.5).step()


def test_gmi_scores_too() -> None:
    model, x = network("chain")
    importance = MutualInformationImportance(model, x.split(16), estimator="gmi", seed=5)
    again = MutualInformationImportance(model, x.split(16), estimator="gmi", seed=5)
    assert importance.scores.estimator == "gmi"
    assert all(torch.equal(n, again.scores.nats[g]) for g, n in importance.scores.nats.items())
    gone = stepped(model, x, importance, pruning_ratio=0.5)
    assert {layer: len(channels) for layer, (channels, _) in gone.items()} == {"conv1": 3, "conv2": 3}
    assert model(x[:3]).shape == (3, 4)


def test_without_batches_there_is_no_importance() -> None:
    model, _ = network("chain")
    with pytest.raises(MintError, match="at least one batch"):
        MutualInformationImportance(model, [])


class Attention(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Tokens, attention, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(6, 16), Attention(), nn.Linear(16, 3)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x)
        return self.head((x + self.down(self.up(x).relu())).mean(1))  # type: ignore[no-any-return]


def test_heads_are_not_chosen_by_the_scores_of_the_stream() -> None:
    """Torch-Pruning begins a group of heads at the input of the projection, whose outputs are the stream."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(32, 5, 6)
    importance, asked = MutualInformationImportance(model, x.split(16)), {}

    def spy(group: Any) -> Tensor | None:
        found = importance(group)
        asked[group[0].dep.target.name.split(" ")[0], group[0].dep.handler.__name__] = found
        return found

    pruner = tp.pruner.BasePruner(
        model, x[:1], spy, pruning_ratio=0.5, num_heads={model.attention.qkv: 4}, prune_num_heads=True,
        head_pruning_ratio=0.5, ignored_layers=[model.head],
    )  # fmt: skip
    pruner.step()
    assert asked.pop(("attention.proj", "prune_in_channels")) is None
    assert (
        model.attention.qkv.out_features == 48 and model.embed.out_features == 8
    )  # all heads, half the stream
    assert any(found is not None for found in asked.values())


def test_a_pruner_of_a_copy_is_refused() -> None:
    model, x = network("vgg")
    importance = MutualInformationImportance(model, [x])
    pruner = tp.pruner.BasePruner(copy.deepcopy(model), x[:1], importance, pruning_ratio=0.5)
    with pytest.raises(MintError, match="another network than the one that was scored"):
        pruner.step()
