"""Known networks below any prefix, beside other keys, and in files of several sets of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from surgery import own, randomise
from torch import Tensor

from mint_compress.checkpoints.loading import LoadedModel, load_model
from mint_compress.checkpoints.prefixes import parts
from mint_compress.checkpoints.training_keys import is_averaged, is_training
from mint_compress.errors import MintError
from mint_compress.zoo import BUILDERS

State = dict[str, Tensor]
BY_KEYS = "architecture zoo:resnet20_cifar, by its keys and shapes"


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(randomise(BUILDERS["resnet20_cifar"](num_classes=5)).state_dict())


def below(prefix: str, state: State, scale: float = 1) -> State:
    return {prefix + k: v * scale if v.is_floating_point() else v for k, v in state.items()}


def loaded(folder: Path, content: Any, **options: Any) -> LoadedModel:
    torch.save(content, folder / "a.ckpt")
    return load_model(folder / "a.ckpt", **options)


def scale_of(found: LoadedModel, state: State) -> float:
    assert found.builder is not None and found.builder.name == "zoo:resnet20_cifar"
    assert found.builder.kwargs == {"num_classes": 5}
    taken = found.module.state_dict()
    scale = float(taken["linear.weight"][0, 0] / state["linear.weight"][0, 0])
    for key, value in below("", state, scale).items():
        torch.testing.assert_close(taken[key], value)
    return scale


@pytest.mark.parametrize("arch", [None, "zoo:resnet20_cifar"])
@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "module.model.", "a.b.c.d."])
def test_any_prefix_comes_off(tmp_path: Path, state: State, prefix: str, arch: str | None) -> None:
    found = loaded(tmp_path, {"state_dict": below(prefix, state), "epoch": 3}, arch=arch)
    assert scale_of(found, state) == 1
    shown = prefix.removeprefix("module.")
    how = BY_KEYS if arch is None else "architecture zoo:resnet20_cifar, as asked"
    assert found.notes == (f"took the prefix {shown} off the keys", how)


def test_a_bare_network_and_data_parallel_are_as_they_were(tmp_path: Path, state: State) -> None:
    for prefix in ("", "module.", "module._orig_mod."):
        assert loaded(tmp_path, below(prefix, state)).notes == (BY_KEYS,)


@pytest.mark.parametrize("arch", [None, "zoo:resnet20_cifar"])
def test_further_keys_are_named(tmp_path: Path, state: State, arch: str | None) -> None:
    counts = {f"train_metrics.{i}.total": torch.ones(5, 5) for i in range(7)}
    mean = {"mean": torch.zeros(1, 3, 1, 1)}
    content = {**below("model.", state), "loss.weight": torch.ones(5), **mean, **counts}
    found = loaded(tmp_path, content, arch=arch)
    assert scale_of(found, state) == 1
    names = ["loss.weight", "mean", *list(counts)[:4]]
    assert found.notes[:2] == (
        "took the prefix model. off the keys",
        f"left out 9 keys that do not belong to the network: {', '.join(names)} and 3 more",
    )


def test_what_training_and_profiling_leave_without_a_prefix(tmp_path: Path, state: State) -> None:
    profiled = {"conv1.total_ops": torch.ones(1), "layer1.0.total_params": torch.ones(1)}
    for further in (profiled, {"criterion.weight": torch.ones(5)}, {"ema.decay": torch.tensor(0.9)}):
        found = loaded(tmp_path, state | further)
        assert scale_of(found, state) == 1
        names = ", ".join(further)
        assert f"not belong to the network: {names}" in found.notes[0]


def test_nothing_is_left_out_of_a_network_that_only_resembles_a_known_one(
    tmp_path: Path, state: State
) -> None:
    inside = {"layer1.0.attention.weight": torch.ones(16, 16)}
    for prefix in ("", "model."):
        with pytest.raises(MintError, match=r"a key 'layer1.0.attention.weight' that it does not know"):
            loaded(tmp_path, below(prefix, state | inside))
    # the shapes of a pruned one, below a prefix: the message is about the keys without it
    pruned = state | {"layer1.0.conv1.weight": torch.ones(12, 16, 3, 3)}
    with pytest.raises(MintError, match=r"nearest is zoo:resnet20_cifar: 'layer1.0.conv1.weight' is \(12, "):
        loaded(tmp_path, below("model.", pruned) | {"loss.weight": torch.ones(5)})
    with pytest.raises(MintError, match=r"not fit --arch resnet20_cifar: 'layer1.0.conv1.weight' is \(12, "):
        loaded(tmp_path, below("model.", pruned), arch="resnet20_cifar")


def test_a_part_of_a_larger_network_is_taken_only_on_request(tmp_path: Path, state: State) -> None:
    content = below("backbone.", state) | {"head.0.weight": torch.ones(9, 5), "head.0.bias": torch.ones(9)}
    with pytest.raises(
        MintError, match=r"zoo:resnet20_cifar under backbone\. and further layers .*: head\.0"
    ):
        loaded(tmp_path, content)
    found = loaded(tmp_path, content, arch="resnet20_cifar")
    assert scale_of(found, state) == 1
    assert found.notes[1].endswith("2 keys that do not belong to the network: head.0.weight, head.0.bias")


def test_an_arch_of_the_user_below_a_prefix(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = "def make(num_classes=3):\n    return nn.Sequential(nn.Linear(4, num_classes))"
    own(tmp_path, monkeypatch, make)  # type: ignore[no-untyped-call]
    weight, bias = torch.ones(7, 4), torch.zeros(7)
    content = {"model.0.weight": weight, "model.0.bias": bias, "head.weight": torch.ones(2, 2)}
    found = loaded(tmp_path, content, arch="ownbuilder:make")
    assert found.builder is not None and found.builder.kwargs == {"num_classes": 7}
    assert torch.equal(found.module.get_parameter("0.weight"), weight)


SETS = [
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model", "ema"),
    ("model_state_dict", "ema_state_dict"),
    ("net", "net_ema"),
]


@pytest.mark.parametrize(("first", "second"), SETS)
def test_of_two_sets_one_is_taken_and_said(tmp_path: Path, state: State, first: str, second: str) -> None:
    content = {second: below("", state, 1.5), first: state, "optimizer": {"state": {}, "param_groups": []}}
    found = loaded(tmp_path, content)
    assert scale_of(found, state) == 1
    assert found.notes[0] == (
        f"took the weights {first}, --weights NAME takes another; the file holds {second} as well"
    )
    for name in (second, "ema", "EMA"):
        found = loaded(tmp_path, content, weights=name)
        assert scale_of(found, state) == pytest.approx(1.5)
        assert found.notes[0] == f"took the weights {second}, as asked; the file holds {first} as well"
    with pytest.raises(MintError, match=f"holds no weights called 'best'. It holds {second}, {first}."):
        loaded(tmp_path, content, weights="best")


def test_sets_within_dicts(tmp_path: Path, state: State) -> None:
    content = {"model": {"state_dict": state, "n": 1}, "model_ema": {"module": below("", state, 1.5)}}
    assert scale_of(loaded(tmp_path, content), state) == 1
    assert scale_of(loaded(tmp_path, content, weights="ema"), state) == pytest.approx(1.5)
    assert "model.state_dict, --weights" in loaded(tmp_path, content).notes[0]


@pytest.mark.parametrize("average", ["ema_model.module.", "teacher.", "ema.ema_model."])
def test_two_sets_among_the_keys(tmp_path: Path, state: State, average: str) -> None:
    content = {**below(average, state, 1.5), **below("model.", state), "loss.weight": torch.ones(5)}
    found = loaded(tmp_path, {"state_dict": content})
    assert scale_of(found, state) == 1
    assert found.notes[:2] == (
        f"took the weights under model., --weights NAME takes another; the file has weights under {average} "
        "as well",
        "left out 1 key that does not belong to the network: loss.weight",
    )
    for arch in (None, "resnet20_cifar"):
        found = loaded(tmp_path, content, weights=average.split(".")[0], arch=arch)
        assert scale_of(found, state) == pytest.approx(1.5)
    names = ", ".join(sorted(("model", average[:-1])))
    with pytest.raises(MintError, match=f"no weights called 'best'. It holds {names}"):
        loaded(tmp_path, content, weights="best")


def test_weights_that_a_file_of_one_set_does_not_have(tmp_path: Path, state: State) -> None:
    with pytest.raises(MintError, match=r"no weights called 'ema'. It holds one set of weights. Leave out"):
        loaded(tmp_path, state, weights="ema")


def test_no_set_is_the_obvious_one(tmp_path: Path, state: State) -> None:
    content = {"generator": state, "discriminator": below("", state, 1.5)}
    with pytest.raises(
        MintError, match=r"several sets of weights: generator, discriminator. Choose with --w"
    ):
        loaded(tmp_path, content)
    assert scale_of(loaded(tmp_path, content, weights="disc"), state) == pytest.approx(1.5)
    with pytest.raises(MintError, match="that --weights or can mean: generator, discriminator"):
        loaded(tmp_path, content, weights="or")


def test_statistics_beside_the_weights_are_no_set(tmp_path: Path, state: State) -> None:
    content = {"net": state, "images": {"mean": torch.zeros(3), "std": torch.ones(3)}}
    assert loaded(tmp_path, content).notes == (BY_KEYS,)


def test_parts_of_keys() -> None:
    found = parts(["m.a.w", "m.b.w", "loss.w"])
    assert [(p.prefix, list(p.keys)) for p in found] == [
        ("", ["m.a.w", "m.b.w", "loss.w"]),
        ("", ["m.a.w", "m.b.w"]),
        ("m.", ["a.w", "b.w"]),
        ("m.a.", ["w"]),
        ("m.b.", ["w"]),
        ("loss.", ["w"]),
    ]
    deep = parts([".".join("abcdefghij")])
    assert max(p.prefix.count(".") for p in deep) == 6


@pytest.mark.parametrize(
    "key", ["loss1.w", "trainLoss.w", "val_acc.total", "a.total_ops", "model_ema.w", "f1.n"]
)
def test_words_of_training(key: str) -> None:
    assert is_training(key)


@pytest.mark.parametrize("key", ["schema.weight", "layer1.0.conv1.weight", "remain.w", "lossless.w", "fc1.w"])
def test_words_of_networks(key: str) -> None:
    assert not is_training(key) and not is_averaged(key)
