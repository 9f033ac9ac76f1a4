"""Proof of what came out: a receipt counted three ways, and parity with the runtime.

Exporter and session are seen through the protocol of `mint_compress.exporting.protocol` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.exporting.parity import Parity, check_parity
from mint_compress.exporting.protocol import ExportResult, find_exporter
from mint_compress.nn.contexts import evaluating, hooked
from mint_compress.nn.counting import first_owners, module_macs, parameters
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, run, select, to
from mint_compress.nn.layers import WEIGHTED, fan_in, out_channels
from mint_compress.progress import Progress

Shape = tuple[int, ...]

REST = "biases and normalisation"


@dataclass(frozen=True)
class Change:
    """A count before and after."""

    before: int
    after: int


@dataclass(frozen=True)
class LayerCount:
    """Weights between two layers, as in a paper's layer breakdown."""

    pair: str
    before: int
    after: int


@dataclass(frozen=True)
class Receipt:
    """How much went, and from where that is known.

    Attributes
    ----------
    parameters, macs
        Totals; MACs of one sample, those of products of activations included.
    layers
        Weights per layer pair in the order of the forward pass, then everything else: each column
        sums to ``parameters``.
    modules, tensors, export
        The parameters after, counted from the layers' own attributes and shapes, from the saved
        tensors, and from the trace that the export was made of. None: there was no such file.
    never_run
        Modules with parameters that the forward pass does not reach in eval mode (auxiliary heads):
        an export holds nothing of them, so ``export`` may be smaller by their share.
    """

    parameters: Change
    macs: Change
    layers: tuple[LayerCount, ...]
    modules: int
    tensors: int | None = None
    export: int | None = None
    never_run: tuple[str, ...] = ()

    def __str__(self) -> str:
        removed = 1 - self.parameters.after / self.parameters.before
        counts = {"modules": self.modules, "tensors": self.tensors, "export": self.export}
        sources = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count is not None)
        return (
            f"{self.parameters.before:,} parameters, {self.parameters.after:,} left ({removed:.2%} removed); "
            f"counted from {sources}"
        )


def verify(
    original: nn.Module,
    pruned: nn.Module,
    export: ExportResult,
    samples: Inputs,
    *,
    predicted: Mapping[str, int] | None = None,
    tensors_path: Path | None = None,
    device: str = "auto",
    threads: int = 1,
    tolerance: float = 1e-4,
    progress: Progress | None = None,
) -> tuple[Receipt, Parity]:
    """Check the receipt and the parity of an exported model.

    See `check_receipt` and `check_parity`; ``samples`` (n, ...) of every input serve both.

    Raises
    ------
    CheckFailed
        The first difference found.
    """
    tell = progress or (lambda *_: None)
    tell("verify", 0, 2)
    receipt = check_receipt(
        original,
        pruned,
        predicted=predicted,
        tensors_path=tensors_path,
        export=export,
        example_inputs=select(samples, slice(2)),
    )
    tell("verify", 1, 2)
    session = find_exporter(export.path).open(export.path, device=device, threads=threads)
    parity = check_parity(pruned, session, samples, tolerance=tolerance)
    tell("verify", 2, 2)
    return receipt, parity


def check_receipt(
    original: nn.Module,
    pruned: nn.Module,
    *,
    example_inputs: Inputs,
    predicted: Mapping[str, int] | None = None,
    tensors_path: Path | None = None,
    export: ExportResult | None = None,
) -> Receipt:
    """Count what is left in every place where it can be counted.

    Parameters
    ----------
    original, pruned
        The network before and after, with the same layer names.
    example_inputs
        Inputs, batch first.
    predicted
        Layer name -> parameters after, from the plan; convolutions and linear layers that it does
        not name must be unchanged. None: not compared.
    tensors_path
        The saved ``.safetensors``.
    export
        The shipped file and the trace that became it.

    Raises
    ------
    CheckFailed
        Naming the first layer or tensor that differs.
    """
    modules = check_modules(original, pruned, predicted)
    tensors = check_tensors(pruned, tensors_path) if tensors_path else None
    idle = never_run(pruned, example_inputs)
    exported = None
    if export is not None:
        exported = check_export(pruned, export.traced, export.tensors, idle)
        # some modules are used without being called: nn.MultiheadAttention reads its projection's weight
        idle = tuple(name for name in idle if not any(t.startswith(f"{name}.") for t in export.traced))
    return Receipt(
        parameters=Change(parameters(original), modules),
        macs=Change(*(module_macs(m, _beside(m, example_inputs)).total for m in (original, pruned))),
        layers=layer_counts(original, pruned, example_inputs),
        modules=modules,
        tensors=tensors,
        export=exported,
        never_run=idle,
    )


def layer_counts(original: nn.Module, pruned: nn.Module, example_inputs: Inputs) -> tuple[LayerCount, ...]:
    """Weights of every convolution and linear layer before and after, in the order of their first calls.

    A pair is the layer called before and the layer itself; a layer that is never called stands alone,
    at the end. A shared weight counts where it comes first. The last row is everything else.
    """
    before, after = _weights(original), _weights(pruned)
    if unmatched := sorted(before.keys() ^ after.keys()):
        raise CheckFailed(f"Layer '{unmatched[0]}' is in only one of the original and the pruned network.")
    called = [name for name in _called(original, example_inputs) if name in before]
    pairs = [f"{source} - {name}" for source, name in zip(["input", *called], called, strict=False)]
    alone = [name for name in before if name not in called]
    rows = [
        LayerCount(pair, before[name], after[name])
        for pair, name in zip(pairs + alone, called + alone, strict=True)
    ]
    rest = (parameters(original) - sum(before.values()), parameters(pruned) - sum(after.values()))
    return (*rows, LayerCount(REST, *rest))


def check_modules(original: nn.Module, pruned: nn.Module, predicted: Mapping[str, int] | None) -> int:
    """Compare every module's parameters with the plan and with its own attributes; return the total."""
    weighted = {name for name, m in original.named_modules() if isinstance(m, WEIGHTED)}
    before = {name: count for name, count in _first_owned(original).items() if name in weighted}
    named, owned = dict(pruned.named_modules()), _first_owned(pruned)
    expected = {} if predicted is None else {**before, **predicted}
    if unknown := next((name for name in expected if name not in named), None):
        raise CheckFailed(f"The plan expects a layer '{unknown}' that the pruned network does not have.")
    for name, module in named.items():
        count, described = _own_parameters(module), _described(module)
        if described not in (None, count):
            raise CheckFailed(
                f"Layer '{name}', {module}, holds {count:,} parameters instead of {described:,}."
            )
        if owned[name] != expected.get(name, owned[name]):
            raise CheckFailed(
                f"Layer '{name}' has {owned[name]:,} parameters; the plan predicted {expected[name]:,}."
            )
    return parameters(pruned)


def check_tensors(pruned: nn.Module, path: Path) -> int:
    """Compare the tensors saved in a ``.safetensors`` file with the network; return their parameters."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckFailed(f"'{path}' cannot be read back: {error}") from error
    expected: dict[str, Shape] = {}
    total = 0
    for parameter, names in _named_parameters(pruned):
        if not any(name in stored for name in names):
            raise CheckFailed(f"'{path}' has no tensor '{names[0]}'.")
        expected |= {name: tuple(parameter.shape) for name in names}
        total += math.prod(next(stored[name] for name in names if name in stored))
    expected |= {name: tuple(buffer.shape) for name, buffer in pruned.named_buffers(remove_duplicate=False)}
    for name, shape in stored.items():
        if name not in expected:
            raise CheckFailed(f"'{path}' has a tensor '{name}' that the network does not have.")
        if shape != expected[name]:
            raise CheckFailed(
                f"Tensor '{name}' of '{path}' is {shape}; in the network it is {expected[name]}."
            )
    return total


def check_export(
    pruned: nn.Module,
    traced: Mapping[str, Shape],
    shipped: Mapping[str, Shape],
    never_run: tuple[str, ...] = (),
) -> int:
    """Compare the tensors of an export with the network; return the parameters in its trace.

    Parameters
    ----------
    pruned
        The network.
    traced
        Name -> shape in the trace, before anything was folded: every parameter, by name and shape.
    shipped
        Name -> shape of two and more dimensions in the shipped file: every such parameter, by name
        and shape, transposition allowed. An optimiser that folds something into a weight may drop
        its name, and it keeps one of several small equal tensors; then the shape must be there.
    never_run
        Modules whose parameters neither has to hold.
    """
    missing: list[tuple[nn.Parameter, str]] = []
    kept: list[nn.Parameter] = []
    total = 0
    for parameter, names in _named_parameters(pruned):
        shape = tuple(parameter.shape)
        idle = all(name.rpartition(".")[0] in never_run for name in names)
        if name := next((name for name in names if name in traced), None):
            _compare(name, traced[name], (shape,))
            total += math.prod(traced[name])
        elif not idle:
            raise CheckFailed(f"The export has no tensor '{names[0]}'.")
        if len(shape) < 2:
            continue
        if name := next((name for name in names if name in shipped), None):
            _compare(name, shipped[name], _transpositions(shape))
            kept.append(parameter)
        elif not idle:
            missing.append((parameter, names[0]))
    anonymous = _anonymous(pruned, shipped)
    for parameter, name in missing:
        if any(other.shape == parameter.shape and torch.equal(other, parameter) for other in kept):
            continue
        match = next((s for s in anonymous if s in _transpositions(tuple(parameter.shape))), None)
        if match is None:
            raise CheckFailed(f"The shipped file has no tensor '{name}' of shape {tuple(parameter.shape)}.")
        anonymous.remove(match)
    return total


def never_run(model: nn.Module, example_inputs: Inputs) -> tuple[str, ...]:
    """Modules with parameters of their own that are not called in eval mode, by qualified name."""
    called = set(_called(model, example_inputs))
    return tuple(
        name for name, module in model.named_modules() if name not in called and _own_parameters(module)
    )


def _called(model: nn.Module, example_inputs: Inputs) -> list[str]:
    """Qualified names of all modules in the order of their first calls."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in model.named_modules()
    ]
    with hooked(handles), evaluating(model), torch.no_grad():
        run(model, _beside(model, example_inputs))
    return list(order)


def _beside(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs on the device of the model."""
    return to(inputs, device_of(model))


def _weights(model: nn.Module) -> dict[str, int]:
    """Elements of every weighted layer's own weight; a shared one counts where it comes first."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, WEIGHTED):
            # a reparametrised weight is no parameter of the layer: it belongs to the last row
            weight = layer._parameters.get("weight")
            counts[name] = 0 if weight is None or id(weight) in seen else weight.numel()
            seen.add(id(weight))
    return counts


def _own_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _first_owned(model: nn.Module) -> dict[str, int]:
    """Parameters of every module; one that several share counts where it comes first, as in a plan."""
    return {name: sum(p.numel() for p in own.values()) for name, _, own in first_owners(model)}


def _described(module: nn.Module) -> int | None:
    """Parameters a layer should have by its own attributes; None where they do not tell."""
    if module._parameters.get("weight") is None:
        return None
    beside = sum(p.numel() for n, p in module.named_parameters(recurse=False) if n not in ("weight", "bias"))
    if isinstance(module, WEIGHTED):
        bias = 0 if module.bias is None else 1
        return out_channels(module) * (fan_in(module) + bias) + beside
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 2 * module.num_features
    return None


def _named_parameters(model: nn.Module) -> list[tuple[nn.Parameter, tuple[str, ...]]]:
    """Every parameter once, with all the names it goes by."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [(parameter, tuple(names[id(parameter)])) for parameter in model.parameters()]


def _anonymous(model: nn.Module, shipped: Mapping[str, Shape]) -> list[Shape]:
    """Shapes of the shipped tensors that are not called after a parameter."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [shape for name, shape in shipped.items() if name not in named]


def _transpositions(shape: Shape) -> tuple[Shape, ...]:
    return (shape, shape[::-1]) if len(shape) == 2 else (shape,)


def _compare(name: str, found: Shape, allowed: tuple[Shape, ...]) -> None:
    if found not in allowed:
        raise CheckFailed(f"Tensor '{name}' of the export is {found}, in the network {allowed[0]}.")
