"""Take the channels of a plan out of a network, physically."""

from __future__ import annotations

from typing import Any

from torch import nn

from mint_compress.counting import parameters
from mint_compress.errors import CheckFailed, MintError
from mint_compress.planning import LayerCut, PruningPlan


def prune_(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Remove the plan's channels from ``model``, in place.

    Torch-Pruning's slicing functions do the work, layer by layer, on exactly the channels that the
    plan names. Parameters become new objects: build optimizers afterwards.

    Parameters
    ----------
    model
        The network the plan was made for.
    plan
        From :func:`mint_compress.planning.plan`.

    Returns
    -------
    nn.Module
        ``model``.

    Raises
    ------
    MintError
        When the plan was made for another network; nothing is changed then.
    CheckFailed
        When a layer does not count what the plan predicted.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for cut in plan.cuts:
        _check(model, modules, cut)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for cut in plan.cuts:
        _cut(model, modules, cut)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    _check_counts(model, plan)
    return model


def _check(model: nn.Module, modules: dict[str, Any], cut: LayerCut) -> None:
    remedy = "The plan was made for another network; write a new one with --dry-run."
    try:
        module = model.get_parameter(cut.layer) if cut.kind == "parameter" else modules[cut.layer]
        total = module.shape[cut.dim] if cut.kind == "parameter" else _channels(module, cut)
    except (KeyError, AttributeError, IndexError):
        raise MintError(f"The network has no {cut.kind} layer {cut.layer!r}. {remedy}") from None
    if total != cut.total:
        raise MintError(
            f"Layer {cut.layer} has {total} channels on its {cut.side} side; the plan expects {cut.total}. {remedy}"
        )
    if not 0 < len(set(cut.removed)) < total or min(cut.removed) < 0 or max(cut.removed) >= total:
        raise MintError(
            f"The plan names channels that layer {cut.layer} ({total} wide) cannot lose. {remedy}"
        )


def _channels(module: Any, cut: LayerCut) -> int:
    slicer = _slicer(module)
    return int(slicer.get_in_channels(module) if cut.side == "in" else slicer.get_out_channels(module))


def _slicer(module: Any) -> Any:
    import torch_pruning as tp

    slicer = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
    slicer.pruning_dim = -1
    return slicer


def _cut(model: nn.Module, modules: dict[str, Any], cut: LayerCut) -> None:
    if cut.kind == "parameter":
        parameter = model.get_parameter(cut.layer)
        slicer = _slicer(parameter)
        slicer.pruning_dim = cut.dim
        parent, _, leaf = cut.layer.rpartition(".")
        setattr(model.get_submodule(parent), leaf, slicer.prune_out_channels(parameter, list(cut.removed)))
        return
    module = modules[cut.layer]
    slicer = _slicer(module)
    (slicer.prune_in_channels if cut.side == "in" else slicer.prune_out_channels)(module, list(cut.removed))


def _check_counts(model: nn.Module, plan: PruningPlan) -> None:
    modules = dict(model.named_modules())
    for name, (_, predicted) in plan.layers.items():
        if name in modules:
            # a parameter of the module that the plan counts under its own name is not counted here
            real = sum(
                p.numel()
                for n, p in modules[name].named_parameters(recurse=False)
                if f"{name}.{n}".lstrip(".") not in plan.layers
            )
        else:
            real = model.get_parameter(name).numel()
        if real != predicted:
            raise CheckFailed(f"Layer {name} has {real} parameters; the plan predicted {predicted}.")
    if (total := parameters(model)) != plan.parameters[1]:
        raise CheckFailed(f"The network has {total} parameters; the plan predicted {plan.parameters[1]}.")
