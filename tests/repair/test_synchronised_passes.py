"""Synchronised passes give what separate passes give, and leave nothing behind."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from typing import Any

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

from mint_compress.errors import ForeignError
from mint_compress.repair.synchronised_passes import synchronised_passes
from mint_compress.repair.tensor_location import TensorLocation


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def batches() -> list[Tensor]:
    return [images("residual", 2, seed=s) for s in range(3)]


def seen_separately(model: nn.Module, layers: dict[str, nn.Module], batch: Tensor) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    handles = [
        layer.register_forward_hook(lambda _, x, y, n=name: seen.update({n: (x[0].clone(), y.clone())}))  # type: ignore[misc]
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("after", [False, True])
def test_equals_separate_passes(after: bool) -> None:
    model = build("residual")
    layers: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    wanted = [seen_separately(model, layers, b) for b in batches()]
    order = list(wanted[0])
    threads = threading.active_count()
    with synchronised_passes(model, layers, batches(), after=after) as passes:
        for name in order:
            assert [p.advance() for p in passes] == [name] * 3
            for one, seen in zip(passes, wanted, strict=True):
                assert (
                    one.paused_at == name
                    and one.inputs is not None
                    and torch.equal(one.inputs, seen[name][0])
                )
                if after:
                    assert torch.equal(one.made(), seen[name][1])
        assert [p.advance() for p in passes] == [None] * 3
        assert [p.advance() for p in passes] == [None] * 3  # and it stays so
    assert threading.active_count() == threads and hooks(model) == 0


def test_a_change_during_a_pause_is_seen_further_on() -> None:
    model = build("chain")
    layers = {"conv2": model.get_submodule("conv2"), "fc": model.get_submodule("fc")}
    with synchronised_passes(model, layers, [images("chain")], after=False) as (one,):
        one.advance()
        assert isinstance(layers["conv2"], nn.Conv2d) and layers["conv2"].bias is not None
        nn.init.zeros_(layers["conv2"].weight)
        nn.init.constant_(layers["conv2"].bias, 2.0)
        assert one.advance() == "fc"
        assert one.inputs is not None
        torch.testing.assert_close(one.inputs, torch.full((2, 5), 2.0))


def test_records_what_flows_through_points() -> None:
    model = build("residual")
    layers = {"b.conv2": model.get_submodule("b.conv2")}
    points = {
        "x": TensorLocation("b.conv1", "input"),
        "y": TensorLocation("a.bn1", "output"),
    }
    wanted = seen_separately(model, {n: model.get_submodule(n) for n in ("b.conv1", "a.bn1")}, batches()[0])
    with synchronised_passes(model, layers, batches()[:1], after=False, record=points) as (one,):
        one.advance()
        assert torch.equal(one.recorded["x"], wanted["b.conv1"][0])
        assert torch.equal(one.recorded["y"], wanted["a.bn1"][1])
    assert hooks(model) == 0


def test_a_layer_called_twice_pauses_twice() -> None:
    model = build("called_twice")
    layers = {"shared": model.get_submodule("shared")}
    with synchronised_passes(model, layers, [images("called_twice")], after=True) as (one,):
        assert [one.advance() for _ in range(3)] == ["shared", "shared", None]


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2:
            raise ZeroDivisionError("in forward")
        return self.second(self.first(x))  # type: ignore[no-any-return]


def test_an_exception_in_forward_comes_out_and_leaves_no_thread() -> None:
    model = Breaks()
    threads = threading.active_count()
    with (
        pytest.raises(ForeignError, match="ZeroDivisionError: in forward"),
        synchronised_passes(
            model, {"first": model.first}, [torch.zeros(1, 3), torch.zeros(2, 3)], after=True
        ) as passes,
    ):
        for one in passes:
            one.advance()
    assert threading.active_count() == threads and hooks(model) == 0


def test_leaving_early_leaves_no_thread_and_no_hook() -> None:
    model = build("residual")
    layers = {n: model.get_submodule(n) for n in ("a.conv1", "fc")}
    threads = threading.active_count()
    with synchronised_passes(model, layers, batches(), after=False) as passes:
        passes[0].advance()  # one has paused, two have not begun
        assert threading.active_count() == threads + 3
    assert threading.active_count() == threads and hooks(model) == 0
    with pytest.raises(KeyError), synchronised_passes(model, layers, batches(), after=False) as passes:
        passes[1].advance()
        raise KeyError
    assert threading.active_count() == threads and hooks(model) == 0


def test_passes_keep_no_graph() -> None:
    model = build("chain")
    with synchronised_passes(model, {"fc": model.get_submodule("fc")}, [images("chain")], after=True) as (
        one,
    ):
        one.advance()
        assert one.output is not None and not one.output.requires_grad


def test_other_passes_may_go_through_the_network_meanwhile() -> None:
    model = build("chain")
    layers = {"conv2": model.get_submodule("conv2"), "fc": model.get_submodule("fc")}
    first, second = images("chain", 2, seed=0), images("chain", 3, seed=1)
    points = {"fc": TensorLocation("conv2", "output")}
    with synchronised_passes(model, layers, [first], after=False, record=points) as (outer,):
        assert outer.advance() == "conv2"
        held = outer.inputs
        with synchronised_passes(model, {"fc": layers["fc"]}, [second], after=True) as (inner,):
            assert inner.advance() == "fc" and inner.output is not None and len(inner.output) == 3
            assert not inner.recorded  # that is the others' business
            assert inner.advance() is None
        assert outer.paused_at == "conv2" and outer.inputs is held
        assert outer.advance() == "fc" and len(outer.recorded["fc"]) == 2


@pytest.mark.timeout(60)
def test_wherever_it_is_interrupted_all_threads_end() -> None:
    model = build("residual")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    threads = threading.active_count()

    def interrupted(after: int) -> bool:
        """Whether there are so many lines to advance a pass, of the standard library's as well."""
        left = after

        def trace(frame: object, event: str, arg: object) -> object:
            nonlocal left
            left -= event == "line"
            if left == 0:
                raise KeyboardInterrupt
            return trace

        with (
            contextlib.suppress(KeyboardInterrupt),
            synchronised_passes(model, layers, batches()[:1], after=True) as [one],
        ):
            one.advance()
            before = sys.gettrace()  # that of coverage, which would see nothing any more
            sys.settrace(trace)
            try:
                one.advance()
            finally:
                sys.settrace(before)
        return left <= 0

    lines = next(count for count in itertools.count(1) if not interrupted(count))
    assert lines > 3
    assert threading.active_count() == threads
