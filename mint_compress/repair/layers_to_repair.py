"""Which layers of a pruned network are refitted, and what is known of each beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mint_compress.nn.layers import out_channels
from mint_compress.nn.recurrent import (
    RECURRENT,
    batch_first,
    read_and_made,
    reader,
    set_input_projection_,
)
from mint_compress.repair.adjacency import Topology
from mint_compress.repair.network_pair import PassPair
from mint_compress.repair.tensor_location import TensorLocation
from mint_compress.surgery.pruning_plan import PruningPlan


@dataclass(frozen=True, eq=False)
class LayerToRepair:
    """A layer of the pruned network.

    Attributes
    ----------
    name
        Qualified name.
    module
        The layer itself, a convolution or a linear layer; or what multiplies the inputs of a recurrent one.
    norm
        The BatchNorm that alone reads its output, if there is one.
    kept
        ``(C_out,)`` int64: the output channels of the original that it still has.
    shortcut
        Where the tensor is seen whose drift it is to make up for; None: nothing of that kind.
    calls
        How often one forward pass calls it.
    recurrent
        The recurrent layer whose inputs ``module`` multiplies, and that of the original.
    """

    name: str
    module: nn.Module
    norm: nn.Module | None
    kept: Tensor
    shortcut: TensorLocation | None
    calls: int
    recurrent: tuple[nn.Module, nn.Module] | None = None

    def given(self, pair: PassPair) -> Tensor:
        """What the pruned network gives it in these passes."""
        given = pair.pruned.given()
        return given if self.recurrent is None else batch_first(self.recurrent[0], given)

    def made(self, pair: PassPair) -> Tensor:
        """What it gives in the original."""
        if self.recurrent is None:
            return pair.original.made()
        _, made = read_and_made(self.recurrent[1], pair.original.given(), None)
        return made

    def write_back_(self) -> None:
        """Put what ``module`` has become into the recurrent layer, in place."""
        if self.recurrent is not None:
            assert isinstance(self.module, nn.Linear)
            set_input_projection_(self.recurrent[0], self.module)


def layers_to_repair(
    model: nn.Module,
    original: nn.Module,
    plan: PruningPlan,
    topology: Topology,
    *,
    everywhere: bool,
    drift: bool,
) -> dict[str, LayerToRepair]:
    """The layers to refit by name, in the order of their first calls.

    Parameters
    ----------
    model, original
        The pruned network, and the network before.
    plan
        What was removed.
    topology
        Of the pruned network.
    everywhere, drift
        As for :func:`mint_compress.repair.compensation.compensate_`.
    """
    removed = {cut.layer: set(cut.removed) for cut in plan.cuts if cut.side != "in"}
    layers = {}
    for name in _names(model, plan, topology, everywhere):
        norm = topology.norms.get(name)
        own, before = model.get_submodule(name), original.get_submodule(name)
        layers[name] = LayerToRepair(
            name,
            reader(own),
            None if norm is None else model.get_submodule(norm),
            _kept(reader(before), removed.get(name, set())),
            topology.shortcuts.get(name) if drift else None,
            topology.calls.count(name),
            (own, before) if isinstance(own, RECURRENT) else None,
        )
    return layers


def _names(model: nn.Module, plan: PruningPlan, topology: Topology, everywhere: bool) -> Iterator[str]:
    """Layers from the first with fewer inputs on, as far as they can be refitted."""
    layers_with_fewer_inputs = {cut.layer for cut in plan.cuts if cut.side == "in"}
    reached = False
    for name in dict.fromkeys(topology.calls):
        reached = reached or name in layers_with_fewer_inputs
        wanted = reached and (everywhere or name in layers_with_fewer_inputs)
        if wanted and name in topology.simple:
            yield name


def _kept(layer: nn.Module, removed: set[int]) -> Tensor:
    return torch.tensor([channel for channel in range(out_channels(layer)) if channel not in removed])
