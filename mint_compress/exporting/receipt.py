"""Proof of what came out: a receipt counted three ways, and parity with the runtime.

Exporter and session are seen through the protocol of `mint_compress.exporting.protocol` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mint_compress.exporting.layer_breakdown import layer_counts
from mint_compress.exporting.parity import TOLERANCE, check_parity
from mint_compress.exporting.protocol import ExportResult, find_exporter
from mint_compress.exporting.receipt_export import check_export, missing_from
from mint_compress.exporting.receipt_modules import check_modules, never_run, without_effect
from mint_compress.exporting.receipt_tensors import check_tensors
from mint_compress.nn.counting import module_macs, parameters
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, select, to
from mint_compress.progress import Progress
from mint_compress.reporting.records import Counts, LayerChange, Parity, ReceiptCounts


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
    counted
        The parameters after, in every place where they can be counted.
    never_run
        Modules with parameters, and bare parameters, that have no effect on the outputs in eval mode
        (auxiliary heads, what stands for masked patches in training, a norm that nobody reads): an export
        holds nothing of them, so ``counted.export`` may be smaller by their share.
    """

    parameters: Counts
    macs: Counts
    layers: tuple[LayerChange, ...]
    counted: ReceiptCounts
    never_run: tuple[str, ...] = ()

    def __str__(self) -> str:
        sources = ", ".join(f"{name} {count:,}" for name, count in self.counted.counted().items())
        return (
            f"{self.parameters.before:,} parameters, {self.parameters.after:,} left "
            f"({self.parameters.removed or 0:.2%} removed); counted from {sources}"
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
    tolerance: float = TOLERANCE,
    logits: int | None = 0,
    part: nn.Module | None = None,
    progress: Progress | None = None,
) -> tuple[Receipt, Parity]:
    """Check the receipt and the parity of an exported model.

    See `check_receipt` and `check_parity`; ``samples`` (n, ...) of every input serve both. Parity is that of
    the ``part``, if there is one.

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
        part=part,
        example_inputs=select(samples, slice(2)),
    )
    tell("verify", 1, 2)
    session = find_exporter(export.path).open(export.path, device=device, threads=threads)
    parity = check_parity(
        pruned if part is None else part, session, samples, tolerance=tolerance, logits=logits
    )
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
    part: nn.Module | None = None,
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
    part
        What of the pruned network was exported, where that is not all of it.

    Raises
    ------
    CheckFailed
        Naming the first layer or tensor that differs.
    """
    modules = check_modules(original, pruned, predicted)
    tensors = check_tensors(pruned, tensors_path) if tensors_path else None
    within = pruned if part is None else part
    idle = never_run(within, example_inputs)
    exported = None
    if export is not None:
        if missing_from(within, export.traced, idle):
            idle += without_effect(within, example_inputs)
        exported = check_export(within, export.traced, export.tensors, idle)
        # some modules are used without being called: nn.MultiheadAttention reads its projection's weight
        idle = tuple(name for name in idle if not any(f"{t}.".startswith(f"{name}.") for t in export.traced))
    return Receipt(
        parameters=Counts(parameters(original), modules),
        macs=Counts(_macs(original, example_inputs), _macs(pruned, example_inputs)),
        layers=layer_counts(original, pruned, example_inputs),
        counted=ReceiptCounts(modules, tensors, exported),
        never_run=idle,
    )


def _macs(model: nn.Module, example_inputs: Inputs) -> int:
    return module_macs(model, to(example_inputs, device_of(model))).total
