"""The Triton kernel: under Triton's interpreter, through its compiler, and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

# what it says is remembered, and must be forgotten here
from mint_compress.estimators.mst import _triton_works, cross_edges, cross_edges_by_prim
from mint_compress.estimators.mst_boruvka import cross_edges_by_boruvka

triton = pytest.importorskip("triton", reason="Triton is not installed")

# the interpreter is chosen by the environment when the kernel is defined, so it gets its own process
INTERPRET = """
import sys, torch
from mint_compress.estimators.mst_triton import cross_edges_by_triton
cases = torch.load(sys.argv[1])
torch.save([cross_edges_by_triton(*case) for case in cases], sys.argv[2])
"""

Case = tuple[Tensor, Tensor, Tensor]


def problems(nodes: int, width: int, pairs: int, count: int) -> Case:
    """Random, full of ties, with every row twice, and all rows equal."""
    generator = torch.Generator().manual_seed(nodes + width)
    shared = torch.randn(pairs, nodes, 3, generator=generator)
    points = torch.randn(count, nodes, width, generator=generator)
    points[1::2] = points[1::2].round()
    shared[1::2] = shared[1::2].round()
    half = nodes // 2
    points[2::3, half : 2 * half] = points[2::3, :half]
    shared[-1] = 0
    bases = torch.zeros(pairs, nodes, nodes)
    for axis in range(3):
        bases += (shared[:, :, None, axis] - shared[:, None, :, axis]).square()
    return bases, points, torch.rand(nodes, generator=generator) < 0.5


def test_the_interpreted_kernel_counts_like_prim(tmp_path: Path) -> None:
    sizes = [(1, 1), (2, 1), (33, 1), (20, 3), (16, 4), (12, 5)]
    cases = [problems(nodes, width, 2, 3) for nodes, width in sizes]
    torch.save(cases, tmp_path / "cases")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRET, tmp_path / "cases", tmp_path / "counts"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton (3.6 or older) fails with NumPy 2.4")
    assert done.returncode == 0, done.stderr
    for case, counts in zip(cases, torch.load(tmp_path / "counts"), strict=True):
        assert counts.dtype == torch.int64
        assert torch.equal(counts, cross_edges_by_prim(*case))


def test_the_compiled_kernel_rounds_products_on_their_own(tmp_path: Path) -> None:
    # what the interpreter cannot show; the compiler needs no GPU
    compiler = pytest.importorskip("triton.backends.compiler")
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mint_compress.estimators.mst_triton import ROUNDING, _prim
arguments = dict(bases="*fp32", points="*fp32", labels="*i32", counts="*i32", nodes="i32", width="i32")
source = ASTSource(fn=_prim, signature=dict(arguments, BLOCK="constexpr"), constexprs=dict(BLOCK=64))
done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(ROUNDING, num_warps=1))
print(done.asm["ptx"])
"""
    assert compiler.GPUTarget
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mul.f32" in done.stdout or "mul.rn.f32" in done.stdout
    assert "fma." not in done.stdout


def test_where_the_kernel_cannot_run_this_is_said_once_and_nothing_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _triton_works.cache_clear()
    assert not any(_triton_works(torch.device("cpu")) for _ in range(2))  # compiled kernels need a GPU
    assert [one.message.startswith("Triton does not work here") for one in caplog.records] == [True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("width", [1, 4])
def test_kernel_boruvka_and_prim_agree_on_a_gpu(width: int) -> None:
    from mint_compress.estimators.mst_triton import cross_edges_by_triton

    bases, points, labels = problems(1667, width, 2, 4)
    expected = cross_edges_by_prim(bases, points, labels)
    on_gpu = bases.cuda(), points.cuda(), labels.cuda()
    for count in (cross_edges, cross_edges_by_triton, cross_edges_by_boruvka):
        assert torch.equal(count(*on_gpu).cpu(), expected)
