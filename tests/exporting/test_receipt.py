"""The receipt against hand counts, and every way in which it or parity must fail."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.exporting.layer_breakdown import layer_counts
from mint_compress.exporting.parity import check_parity
from mint_compress.exporting.protocol import ExportResult, export, find_exporter
from mint_compress.exporting.receipt import Receipt, check_receipt, verify
from mint_compress.exporting.receipt_export import check_export
from mint_compress.exporting.receipt_modules import check_modules, never_run, without_effect
from mint_compress.exporting.receipt_tensors import check_tensors
from mint_compress.exporting.session import Session
from mint_compress.graph.finding import find_groups
from mint_compress.planning.choices import make_plan
from mint_compress.reporting.records import Counts, LayerChange, ReceiptCounts
from mint_compress.surgery.pruning import prune_


class Branched(nn.Module):
    """What receipts stumble over, in one network.

    A residual sum, a linear layer on channels-last maps (the optimiser transposes its weight and drops
    the name), two small equal tensors (the optimiser keeps one), a shared weight, an auxiliary head that
    never runs in eval mode, and two outputs in a dict.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(width, 4, 1)
        self.mixer = nn.Linear(4, 6)
        self.scale1 = nn.Parameter(torch.full((6, 1, 1), 0.5))
        self.scale2 = nn.Parameter(torch.full((6, 1, 1), 0.5))
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.aux = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = (x * self.scale1).sigmoid() * self.scale2
        hidden = self.first(x.mean((2, 3))).relu()
        return {"logits": self.second(hidden), "hidden": hidden}


PREDICTED = {"inner": 5 * 4 * 9, "outer": 5 * 4 + 4}


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original() -> Branched:
    torch.manual_seed(0)
    return Branched(width=8)


@pytest.fixture(scope="module")
def pruned() -> Branched:
    torch.manual_seed(0)
    return Branched(width=5)


@pytest.fixture(scope="module")
def shipped(pruned: Branched, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    path = tmp_path_factory.mktemp("verification") / "pruned.onnx"
    return export(pruned, (torch.randn(1, 3, 6, 6),), path)


@pytest.fixture(scope="module")
def session(shipped: ExportResult) -> Session:
    return find_exporter(shipped.path).open(shipped.path, device="cpu")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """What a checkpoint of the pruned network holds: shared tensors once."""
    torch.manual_seed(0)
    state = Branched(width=5).state_dict()
    del state["second.weight"]
    return state


def test_verify_end_to_end(
    original: Branched,
    pruned: Branched,
    shipped: ExportResult,
    samples: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    save_file(tensors, tmp_path / "pruned.safetensors")
    steps: list[tuple[str, int, int]] = []
    receipt, parity = verify(
        original,
        pruned,
        shipped,
        samples,
        predicted=PREDICTED,
        tensors_path=tmp_path / "pruned.safetensors",
        device="cpu",
        progress=lambda *step: steps.append(step),
    )
    # stem 112, norm 8, inner 36 and outer 4 + 4 per channel, mixer 30, scales 12, first 42, aux 10
    assert receipt.parameters == Counts(before=112 + 8 + 8 * 40 + 4 + 30 + 12 + 42 + 10, after=538 - 3 * 40)
    assert receipt.counted == ReceiptCounts(modules=418, tensors=418, export=418 - 10)
    assert receipt.never_run == ("aux",)
    # 36 positions; the heads see one
    assert receipt.macs == Counts(
        before=36 * (108 + 8 * 36 + 8 * 4 + 24) + 2 * 36, after=36 * (108 + 5 * 36 + 5 * 4 + 24) + 2 * 36
    )
    assert receipt.layers == (
        LayerChange("input - stem", 108, 108),
        LayerChange("stem - inner", 288, 180),
        LayerChange("inner - outer", 32, 20),
        LayerChange("outer - mixer", 24, 24),
        LayerChange("mixer - first", 36, 36),
        LayerChange("first - second", 0, 0),
        LayerChange("aux", 8, 8),
        LayerChange("biases and normalisation", 42, 42),
    )
    assert sum(row.before for row in receipt.layers) == receipt.parameters.before
    assert sum(row.after for row in receipt.layers) == receipt.parameters.after
    assert str(receipt) == (
        "538 parameters, 418 left (22.30% removed); counted from modules 418, tensors 418, export 408"
    )
    assert parity.max_rel < 1e-5
    assert parity.top1 == 1.0
    assert steps == [("verify", 0, 2), ("verify", 1, 2), ("verify", 2, 2)]
    assert [path.name for path in shipped.path.parent.iterdir()] == ["pruned.onnx"]


def test_receipt_without_files(original: Branched, pruned: Branched, samples: torch.Tensor) -> None:
    original.train()
    receipt = check_receipt(original, pruned, example_inputs=(samples,))
    assert isinstance(receipt, Receipt)
    assert receipt.counted == ReceiptCounts(418, None, None)
    assert original.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in original.modules())


def test_layer_pairs_follow_the_calls_not_the_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.body(x))
            return y

    assert layer_counts(Backwards(), Backwards(), (torch.randn(1, 3),)) == (
        LayerChange("input - body", 12, 12),
        LayerChange("body - head", 8, 8),
        LayerChange("biases and normalisation", 6, 6),
    )


def test_parallel_heads_are_no_chain() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.deep = nn.Linear(3, 4), nn.Linear(3, 4)
            self.one, self.two, self.last = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.wide(x) + self.deep(x)
            return self.one(y), self.last(self.two(y))

    rows = layer_counts(Heads(), Heads(), (torch.randn(1, 3),))
    assert [row.pair for row in rows[:-1]] == [
        "input - wide", "input - deep", "deep - one", "deep - two", "two - last",
    ]  # fmt: skip


def test_modules_that_the_forward_pass_does_not_reach(pruned: Branched, samples: torch.Tensor) -> None:
    assert never_run(pruned, (samples,)) == ("aux",)


class Masking(nn.Module):
    """A class token, one that stands for masked patches in training, and an empty parameter, as in DINOv3."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.first, self.masked = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 8))
        self.registers = nn.Parameter(torch.randn(0, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.first.expand(len(x), -1, -1).to(self.masked.dtype), self.patches(x)], 1)
        y: torch.Tensor = self.head(tokens.mean(1).relu()) + self.registers.sum(0)
        return y


def test_parameters_that_only_training_uses_are_counted_and_not_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original, samples = Masking().eval(), torch.randn(4, 5, 3)
    groups = find_groups(original, samples)
    plan = make_plan(groups, {"patches": np.arange(8) % 2 == 0}, asked=None)
    small = prune_(copy.deepcopy(original), plan)
    assert plan.left == {"": 8, "first": 4, "patches": 16, "head": 10}
    exported = export(small, (samples,), tmp_path / "small.onnx")
    receipt, _ = verify(original, small, exported, samples, predicted=plan.left, device="cpu")
    assert receipt.never_run == ("masked",)
    assert (receipt.counted.modules, receipt.counted.export) == (38, 30)
    with pytest.raises(CheckFailed, match="Layer '' has 12 parameters; the plan predicted 13"):
        check_modules(original, small, {**plan.left, "first": 5})


class Idling(nn.Module):
    """A head that always runs, of which nobody uses what it gives, and a norm of that kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.aux, self.norm = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).relu()
        self.aux(self.norm(y))
        result: torch.Tensor = self.head(y)
        return result


def test_what_runs_without_effect_need_not_be_in_an_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, samples = Idling().eval().requires_grad_(False), torch.randn(4, 3)
    assert without_effect(network, samples) == ("aux.0", "aux.2", "norm")
    exported = export(network, (samples,), tmp_path / "idling.onnx")
    receipt, _ = verify(network, network, exported, samples, device="cpu")
    assert receipt.never_run == ("aux.0", "aux.2", "norm")
    assert receipt.counted.export == 3 * 8 + 8 + 8 * 2 + 2
    short = {name: shape for name, shape in exported.traced.items() if name != "head.bias"}
    with pytest.raises(CheckFailed, match=r"The export has no tensor 'head.bias'"):
        check_receipt(network, network, export=replace(exported, traced=short), example_inputs=samples)


def test_of_equal_tensors_that_lost_their_names_one_is_enough() -> None:
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[2].weight)
    traced = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert check_export(network, traced, {"0.weight": (4, 3), "val_7": (4, 3)}) == 12 + 2 * 15
    with pytest.raises(CheckFailed, match=r"no tensor '1.weight' of shape \(3, 4\)"):
        check_export(network, traced, {"0.weight": (4, 3)})


def test_prediction_that_does_not_hold(original: Branched, pruned: Branched) -> None:
    assert check_modules(original, pruned, PREDICTED) == 418
    with pytest.raises(CheckFailed, match="Layer 'outer' has 24 parameters; the plan predicted 25") as caught:
        check_modules(original, pruned, {**PREDICTED, "outer": 25})
    assert caught.value.exit_code == 1
    with pytest.raises(CheckFailed, match="Layer 'inner' has 180 parameters; the plan predicted 288"):
        check_modules(original, pruned, {"outer": 24})  # what is not named must not have changed
    with pytest.raises(CheckFailed, match="a layer 'gone' that the pruned network does not have"):
        check_modules(original, pruned, {**PREDICTED, "gone": 3})


def test_attributes_that_were_not_adapted(original: Branched) -> None:
    careless = Branched(width=5)
    careless.outer.in_channels = 8
    with pytest.raises(CheckFailed, match=r"Layer 'outer', Conv2d.*holds 24 parameters instead of 36"):
        check_modules(original, careless, PREDICTED)


def test_grouped_and_transposed_layers_are_described_right() -> None:
    layers = nn.Sequential(
        nn.Conv2d(8, 12, (3, 5), groups=4),
        nn.ConvTranspose2d(12, 6, 2, groups=3, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.LayerNorm(7),
        nn.utils.parametrizations.weight_norm(nn.Linear(7, 3)),
    )
    assert check_modules(layers, layers, None) == (2 * 12 * 15 + 12) + (4 * 6 * 4) + 14 + (21 + 3 + 3)


def save(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / "pruned.safetensors"
    save_file(tensors, path)
    return path


def test_a_tensor_cut_short_is_named(
    pruned: Branched, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert check_tensors(pruned, save(tensors, tmp_path)) == 418
    tensors["inner.weight"] = tensors["inner.weight"][:4].clone()
    path = save(tensors, tmp_path)
    with pytest.raises(CheckFailed, match=r"Tensor 'inner.weight' .* \(4, 4, 3, 3\); .* \(5, 4, 3, 3\)"):
        check_receipt(pruned, pruned, tensors_path=path, example_inputs=(torch.randn(1, 3, 6, 6),))


def test_tensors_missing_and_to_spare(
    pruned: Branched, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    extra = {**tensors, "outer.mask": torch.ones(3)}
    with pytest.raises(CheckFailed, match=r"a tensor 'outer.mask' that the network does not have"):
        check_tensors(pruned, save(extra, tmp_path))
    del tensors["mixer.bias"]
    with pytest.raises(CheckFailed, match=r"no tensor 'mixer.bias'"):
        check_tensors(pruned, save(tensors, tmp_path))


def test_a_file_that_is_not_safetensors(pruned: Branched, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckFailed, match="cannot be read back"):
        check_tensors(pruned, tmp_path / "broken.safetensors")
    with pytest.raises(CheckFailed, match="cannot be read back"):
        check_tensors(pruned, tmp_path / "missing.safetensors")


def test_the_trace_holds_every_parameter_that_runs(pruned: Branched, shipped: ExportResult) -> None:
    shapes = {name: tuple(p.shape) for name, p in pruned.named_parameters(remove_duplicate=False)}
    # a shared weight goes by its last name, a head that never runs is not traced
    expected = {n: s for n, s in shapes.items() if n != "first.weight" and not n.startswith("aux.")}
    assert expected.items() <= shipped.traced.items()
    assert not any(name.startswith("aux.") for name in shipped.traced)


def test_differences_in_the_trace_are_named(pruned: Branched, shipped: ExportResult) -> None:
    assert check_export(pruned, shipped.traced, shipped.tensors, ("aux",)) == 408
    with pytest.raises(CheckFailed, match=r"^The export has no tensor 'aux.weight'"):
        check_export(pruned, shipped.traced, shipped.tensors)
    wrong = {**shipped.traced, "mixer.weight": (4, 6)}  # here even a transposition is a difference
    with pytest.raises(CheckFailed, match=r"Tensor 'mixer.weight' of the export is \(4, 6\)"):
        check_export(pruned, wrong, shipped.tensors, ("aux",))


def test_a_trace_or_a_file_of_another_network_fails(
    original: Branched, pruned: Branched, shipped: ExportResult, samples: torch.Tensor
) -> None:
    with pytest.raises(CheckFailed, match=r"'inner.weight' of the export is \(5, 4, 3, 3\)"):
        check_receipt(original, original, export=shipped, example_inputs=samples)
    short = {name: shape for name, shape in shipped.traced.items() if name != "norm.bias"}
    with pytest.raises(CheckFailed, match=r"The export has no tensor 'norm.bias'"):
        check_receipt(pruned, pruned, export=replace(shipped, traced=short), example_inputs=samples)


def test_differences_in_the_shipped_file_are_named(pruned: Branched, shipped: ExportResult) -> None:
    # the optimiser did what the network was made for, else this test shows nothing
    assert "mixer.weight" not in shipped.tensors
    assert len({"scale1", "scale2"} & shipped.tensors.keys()) == 1
    wider = {**shipped.tensors, "outer.weight": (4, 8, 1, 1)}
    with pytest.raises(CheckFailed, match=r"Tensor 'outer.weight' of the export is \(4, 8, 1, 1\)"):
        check_export(pruned, shipped.traced, wider, ("aux",))
    for name in ("outer.weight", "second.weight"):
        short = {n: s for n, s in shipped.tensors.items() if n != name}
        with pytest.raises(CheckFailed, match="The shipped file has no tensor"):
            check_export(pruned, shipped.traced, short, ("aux",))
    without_mixer = {n: s for n, s in shipped.tensors.items() if s != (4, 6)}
    with pytest.raises(CheckFailed, match=r"no tensor 'mixer.weight' of shape \(6, 4\)"):
        check_export(pruned, shipped.traced, without_mixer, ("aux",))


def test_parity_of_many_samples_and_of_few(pruned: Branched, session: Session, samples: torch.Tensor) -> None:
    for count in (1, 7, 10):
        parity = check_parity(pruned, session, samples[:count])
        assert parity.max_rel <= 1e-5
        assert parity.top1 == 1.0


@pytest.fixture
def tampered() -> Iterator[Branched]:
    torch.manual_seed(0)
    yield Branched(width=5)


def test_a_tampered_weight_fails_parity(tampered: Branched, session: Session, samples: torch.Tensor) -> None:
    check_parity(tampered, session, samples)
    with torch.no_grad():
        tampered.second.weight[0, 0] += 0.01
    with pytest.raises(CheckFailed, match=r"differs from the pruned one by .* 1e-04 is allowed\.$") as caught:
        check_parity(tampered, session, samples)
    assert caught.value.exit_code == 1
    parity = check_parity(tampered, session, samples, tolerance=1.0)
    assert parity.max_rel > 1e-4


def test_rounding_is_named_where_it_is_to_blame(
    tampered: Branched, session: Session, samples: torch.Tensor
) -> None:
    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tampered

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [output + 1e6 - 1e6 for output in self.network(x).values()]

    with pytest.raises(CheckFailed, match=r"allowed. PyTorch itself is .* off double precision"):
        check_parity(Coarse(), session, samples)


def test_only_the_second_output_differs(tampered: Branched, session: Session, samples: torch.Tensor) -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            outputs = tampered(x)
            return [outputs["logits"], outputs["hidden"] + 0.1]

    with pytest.raises(CheckFailed, match=r"\(1.0e-01 in absolute terms\)"):
        check_parity(Shifted(), session, samples)


def test_not_a_number_fails_parity(tampered: Branched, session: Session, samples: torch.Tensor) -> None:
    with torch.no_grad():
        tampered.second.weight[0, 0] = float("nan")
    with pytest.raises(CheckFailed, match="by nan of its largest output"):
        check_parity(tampered, session, samples)


def test_another_number_of_outputs_fails_parity(
    tampered: Branched, session: Session, samples: torch.Tensor
) -> None:
    class OnlyLogits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = tampered(x)["logits"]
            return logits

    with pytest.raises(CheckFailed, match="returns outputs of shape"):
        check_parity(OnlyLogits(), session, samples)
