"""Exporters: discovery, what the ONNX file holds and hides, and how it runs."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mint_exporters import onnx as onnx_exporter
from mint_exporters.onnx import OnnxExporter
from torch import nn
from torch.nn import functional

import mint_compress.exporting.protocol
from mint_compress.errors import MintError
from mint_compress.exporting.protocol import ExportResult, export, find_exporter, on_cpu
from mint_compress.exporting.receipt_export import check_export
from mint_compress.exporting.session import InputSpec


class Chain(nn.Module):
    """Two convolutions (the second without a bias), batch normalisation, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.dropout(self.features(x).flatten(1)))
        return y


@pytest.fixture(scope="module")
def model() -> Chain:
    torch.manual_seed(0)
    network = Chain()
    network.train()
    for layer in network.features:
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_buffer("running_mean", torch.empty(layer.num_features).uniform_(-1, 1))
            layer.register_buffer("running_var", torch.empty(layer.num_features).uniform_(0.5, 2))
    network.features[3].eval()  # a mode of its own, to be found again after the export
    return network


@pytest.fixture(scope="module")
def exported(model: Chain, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    path = tmp_path_factory.mktemp("export") / "small.onnx"
    path.write_bytes(b"an older file")
    return export(model, (torch.randn(1, 3, 8, 8),), path, metadata={"mint_compress": "1", "ratio": "0.5"})


def test_weights_are_in_the_file_under_their_names_and_shapes(exported: ExportResult) -> None:
    assert exported.tensors == {
        "features.0.weight": (5, 3, 3, 3),
        "features.3.weight": (6, 5, 3, 3),
        "fc.weight": (4, 6),
    }


def test_the_trace_lists_every_weight_before_anything_is_folded(model: Chain, exported: ExportResult) -> None:
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parameters.items() <= exported.traced.items()
    # folded into the convolutions of the file
    assert not any("features.4." in tensor.name for tensor in onnx.load(exported.path).graph.initializer)


class LookedUp(nn.Module):
    """Adds a bias that is looked up in a table, as attention in windows does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("places", torch.arange(16).reshape(4, 4) % 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places: torch.Tensor = self.places  # type: ignore[assignment]
        return x + self.table[places.flatten()].reshape(4, 4, 2).permute(2, 0, 1)


def test_a_table_that_is_looked_up_stays_a_weight_of_its_own(tmp_path: Path) -> None:
    network, x = LookedUp().eval(), torch.randn(3, 2, 4, 4)
    exported = export(network, (x,), tmp_path / "table.onnx")
    assert exported.tensors["table"] == (9, 2)
    [y] = OnnxExporter().open(exported.path, device="cpu").run((x.numpy(),))
    assert np.allclose(y, network(x).detach().numpy(), atol=1e-6)


class Coordinates(nn.Module):
    """Adds a bias that an MLP makes of fixed coordinates, as the second Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(1, 4, 2))
        self.mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.places)  # type: ignore[no-any-return]


def test_weights_that_read_constants_only_stay_in_the_file(tmp_path: Path) -> None:
    network, x = Coordinates().eval(), torch.randn(5, 4, 3)
    exported = export(network, (x,), tmp_path / "coordinates.onnx")
    assert check_export(network, exported.traced, exported.tensors) == 2 * 8 + 8 + 8 * 3
    [y] = OnnxExporter().open(exported.path, device="cpu").run((x.numpy(),))
    assert np.allclose(y, network(x).detach().numpy(), atol=1e-6)


class Attends(nn.Module):
    """Attention over dimensions that PyTorch takes and its exporter does not.

    Hiera and NesT have windows in front of the heads; SAM has heads and images in one dimension.
    """

    def __init__(self, in_front: str, mask: tuple[int, ...] | None) -> None:
        super().__init__()
        self.in_front = in_front
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("mask", None if mask is None else torch.rand(mask))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(x).reshape(len(x), 3, 4, 3, 2, 4).permute(3, 0, 1, 4, 2, 5)
        if self.in_front == "all in one":
            heads = heads.flatten(1, 3)
        elif self.in_front == "heads":
            heads = heads.flatten(1, 2)
        q, k, v = heads
        y: torch.Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=0.7)
        return y.reshape(len(x), 3, 2, 4, 4)


@pytest.mark.parametrize(
    ("in_front", "mask"),
    [
        ("windows and heads", None),
        ("windows and heads", (3, 1, 4, 4)),
        ("windows and heads", (4, 4)),
        ("heads", (2, 4, 4)),
        ("all in one", None),
        ("all in one", (1, 4, 4)),
    ],
)
def test_attention_of_any_dimensions(tmp_path: Path, in_front: str, mask: tuple[int, ...] | None) -> None:
    network, x = Attends(in_front, mask).eval(), torch.randn(5, 3, 4, 8)
    exported = export(network, (x[:2],), tmp_path / "attention.onnx")
    [y] = OnnxExporter().open(exported.path, device="cpu").run((x.numpy(),))
    assert np.allclose(y, network(x).detach().numpy(), atol=1e-6)


def test_one_file_is_written_and_nothing_else(exported: ExportResult) -> None:
    assert exported.files == (exported.path,)
    assert exported.notes == ()
    assert os.listdir(exported.path.parent) == ["small.onnx"]


def test_modes_are_as_they_were(model: Chain, exported: ExportResult) -> None:
    assert {name for name, m in model.named_modules() if not m.training} == {"features.3"}


def test_no_source_paths_or_code_lines_are_left(exported: ExportResult) -> None:
    data = exported.path.read_bytes()
    for secret in (b".py", b"pkg.", b"stack_trace", str(Path(__file__).parent).encode(), b"site-packages"):
        assert secret not in data
    proto = onnx.load(exported.path)
    assert {p.key: p.value for p in proto.metadata_props} == {"mint_compress": "1", "ratio": "0.5"}
    assert not proto.graph.metadata_props
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.initializer):
        assert not item.metadata_props
        assert not item.doc_string


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_runs_and_agrees_with_the_module_in_eval_mode(
    model: Chain, exported: ExportResult, batch: int
) -> None:
    session = find_exporter(exported.path).open(exported.path, device="cpu", threads=1)
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
    (got,) = session.run((x.numpy(),))
    with on_cpu(model) as reference, torch.no_grad():
        want = reference(x).numpy()
    assert got.shape == (batch, 4)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_session_says_what_it_takes_and_where_it_runs(exported: ExportResult) -> None:
    session = OnnxExporter().open(exported.path, device="cpu")
    assert session.inputs == [InputSpec("x", (None, 3, 8, 8), "float32")]
    assert session.provider == "CPUExecutionProvider"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_that_does_not_load_is_an_error_and_auto_falls_back(
    exported: ExportResult, capfd: pytest.CaptureFixture[str]
) -> None:
    exporter = OnnxExporter()
    with pytest.raises(MintError, match=r"^CUDA was asked for.*CPUExecutionProvider.*Install") as caught:
        exporter.open(exported.path, device="cuda")
    assert caught.value.exit_code == 2
    assert exporter.open(exported.path, device="auto").provider == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs CUDA and onnxruntime-gpu",
)
def test_auto_takes_cuda_where_it_loads(exported: ExportResult) -> None:
    assert OnnxExporter().open(exported.path, device="auto").provider == "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a model ONNX Runtime can open"),
        (b"<!doctype html><html>not found</html>", "is not a model ONNX Runtime can open"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MintError, match=message) as caught:
        find_exporter(path).open(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_cannot_be_opened(exported: ExportResult, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(exported.path.read_bytes()[: exported.path.stat().st_size // 2])
    with pytest.raises(MintError, match="is not a model ONNX Runtime can open"):
        OnnxExporter().open(path)


def test_wrong_inputs_are_one_line(exported: ExportResult) -> None:
    session = OnnxExporter().open(exported.path, device="cpu")
    x = np.zeros((2, 3, 9, 9), np.float32)
    with pytest.raises(MintError, match="takes 1 inputs, 2 were given"):
        session.run((x, x))
    with pytest.raises(MintError, match="invalid dimensions") as caught:
        session.run((x,))
    assert "\n" not in str(caught.value)


def test_unknown_device(exported: ExportResult) -> None:
    with pytest.raises(MintError, match=r"^Unknown device 'tpu'. Choose from: auto, cpu, cuda.$"):
        OnnxExporter().open(exported.path, device="tpu")


def test_a_model_that_cannot_be_traced_leaves_no_file_and_a_quiet_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Undecided(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input.sin() if input.sum() > 0 else input

    told = r"^PyTorch cannot export Undecided to ONNX \(test_protocol\.py, line \d+\): "
    with pytest.raises(MintError, match=told) as caught:
        export(Undecided(4, 4), (torch.randn(2, 4),), tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not os.listdir(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_large_weights_go_to_one_file_beside(
    exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir

    monkeypatch.setattr(onnx_exporter, "LARGEST_SINGLE_FILE", 100)
    path = tmp_path / "large.onnx"
    files = onnx_exporter._save(onnx_ir.load(exported.path), path)
    assert files == (path, tmp_path / "large.onnx.data")
    assert sorted(os.listdir(tmp_path)) == ["large.onnx", "large.onnx.data"]
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    split, single = (OnnxExporter().open(p, device="cpu").run((x,))[0] for p in (path, exported.path))
    np.testing.assert_array_equal(split, single)
    assert onnx_exporter._stored_matrices(path) == exported.tensors


def test_constant_nodes_and_subgraphs_are_counted(tmp_path: Path) -> None:
    helper = onnx.helper
    matrix = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32))
    inner = onnx.numpy_helper.from_array(np.ones((4, 5), np.float32))
    value = helper.make_tensor_value_info
    branch = helper.make_graph([helper.make_node("Constant", [], ["deep"], value=inner)], "branch", [], [])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["flat"], value=matrix),
            helper.make_node("If", ["condition"], [], then_branch=branch, else_branch=branch),
        ],
        "graph",
        [value("condition", onnx.TensorProto.BOOL, [])],
        [],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "bias")],
    )
    path = tmp_path / "constants.onnx"
    onnx.save(helper.make_model(graph), path)
    assert onnx_exporter._stored_matrices(path) == {"flat": (2, 3), "deep": (4, 5)}


def test_exporters_are_found_by_suffix() -> None:
    assert find_exporter("a/model.ONNX").name == "onnx"
    with pytest.raises(
        MintError, match=r"^No exporter writes 'model.foo'. Choose a suffix from: .onnx, .pte, .xml.$"
    ):
        find_exporter("model.foo")


def test_no_exporter_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mint_compress.exporting.protocol, "ENTRY_POINTS", "mint_compress.nothing_is_registered_here"
    )
    with pytest.raises(MintError) as caught:
        find_exporter("model.onnx")
    assert str(caught.value) == ("No exporter 'onnx'. Found: none. Running from a checkout? pip install -e .")


def test_output_folder_must_exist(model: Chain, tmp_path: Path) -> None:
    with pytest.raises(MintError, match="No folder"):
        export(model, (torch.randn(1, 3, 8, 8),), tmp_path / "missing" / "out.onnx")
    with pytest.raises(MintError, match="is a folder"):
        (tmp_path / "out.onnx").mkdir()
        export(model, (torch.randn(1, 3, 8, 8),), tmp_path / "out.onnx")
