"""A pass in which whatever reduces over channels ignores some of them, as the layers that read them do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mint_compress.errors import our_own
from mint_compress.graph.groups import Side
from mint_compress.graph.label_rules import by_name, is_reduction, reduced_dims
from mint_compress.graph.label_tracing import Recorder
from mint_compress.graph.labels import compact
from mint_compress.graph.reference import Reference
from mint_compress.nn.contexts import training_flags
from mint_compress.nn.io import tensors_in
from mint_compress.nn.layers import OVER_CHANNELS

Gone = Mapping[tuple[str, str, Side, int], Sequence[int]]
"""Layer, kind, side and dimension -> the layer's own channels that go."""


def outputs_without(reference: Reference, gone: Gone) -> list[Tensor]:
    """What the network gives when means, sums, norms and maxima over channels are over those that stay.

    A reduction is like a layer that reads channels, without weights of its own that could be set to 0. It
    is given the channels that stay where these can be told: where they lie along one dimension.

    Parameters
    ----------
    reference
        From :func:`mint_compress.graph.reference.reference_run`.
    gone
        The channels to be ignored. The layers must ignore them by themselves.

    Raises
    ------
    ForeignError
        The network's forward pass fails.
    """
    recorder = _Ignoring(reference, gone)
    outputs = [t.clone() for t in tensors_in(recorder.run(reference.inputs))]
    if reference.in_training:
        with training_flags(reference.model):
            outputs += [t.clone() for t in tensors_in(recorder.run(reference.inputs))]
    return outputs


def _has_own_forward(module: nn.Module) -> bool:
    return any(
        isinstance(module, kind) and type(module).forward is not kind.forward for kind in OVER_CHANNELS
    )


class _Ignoring(Recorder):
    """Follows the channels through a pass, and takes some of them from what a reduction is given."""

    def __init__(self, reference: Reference, gone: Gone) -> None:
        super().__init__(reference.model)
        self._gone = gone
        # a LayerNorm or RMSNorm with a forward pass of its own may reduce over channels in there
        self._layers = {module: name for module, name in self._layers.items() if not _has_own_forward(module)}
        self.owner = {key: module for key, module in self.owner.items() if module in self._layers}

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation; a reduction without the channels that go."""
        if is_reduction(func) and args and self.labels.knows(args[0]):
            with our_own(), self.paused():
                dims = reduced_dims(by_name(func, args, kwargs), args[0].ndim)
                args = (self._without(args[0], dims), *args[1:])
        return super().compute(func, args, kwargs)

    def _without(self, tensor: Tensor, dims: Sequence[int]) -> Tensor:
        """The elements of channels that stay, if those that go lie along one of ``dims``."""
        roots = self.units.find(self.labels.of(tensor))
        goes = torch.isin(compact(roots), self._units_gone())
        along = [d for d in range(goes.ndim) if bool((goes != goes.narrow(d, 0, 1)).any())]
        if len(along) != 1 or along[0] not in dims:
            return tensor
        (dim,) = along
        stays = ~goes.movedim(dim, 0).flatten(1)[:, 0] if goes.ndim > 1 else ~goes
        return tensor.index_select(dim, stays.nonzero().flatten())

    def _units_gone(self) -> Tensor:
        """Their units, as far as the pass has met the layers and parameters that make them."""
        made = {(t.layer, t.side): t.units for t in self.touches}
        found = [torch.zeros(0, dtype=torch.int64)]
        for (layer, kind, side, dim), channels in self._gone.items():
            own = torch.tensor(channels)
            if kind == "parameter" and layer in self.labels.elements:
                found.append(self.labels.elements[layer].index_select(dim, own).flatten())
            elif side == "out" and (layer, side) in made:
                found.append(made[layer, side].index_select(0, own))
        roots = self.units.find(torch.cat(found)).unique()
        real: Tensor = roots[roots > 0]
        return real
