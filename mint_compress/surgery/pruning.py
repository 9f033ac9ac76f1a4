"""Take the channels of a plan out of a network, physically."""

from __future__ import annotations

from typing import Any

from torch import nn

from mint_compress.errors import CheckFailed, MintError
from mint_compress.nn.contexts import forget_computed_
from mint_compress.nn.counting import first_owners
from mint_compress.surgery.layer_sizes import may_shrink, set_sizes_
from mint_compress.surgery.pruning_plan import LayerCut, PruningPlan
from mint_compress.surgery.slicing import adapt_, check_cut, cut_, slicer_of

REMEDY = "The plan was made for another network; write a new one with --dry-run."


def prune_(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Remove the plan's channels from ``model``, in place.

    Torch-Pruning's slicing functions do the work, layer by layer, on exactly the channels that the
    plan names. Parameters become new objects: build optimizers afterwards.

    Parameters
    ----------
    model
        The network the plan was made for.
    plan
        From :func:`mint_compress.planning.search.plan`.

    Returns
    -------
    nn.Module
        ``model``.

    Raises
    ------
    MintError
        When the plan was made for another network, or names a layer that cannot be cut; nothing is
        changed then.
    CheckFailed
        When a layer does not count what the plan predicted.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for cut in plan.cuts:
        _check(model, modules, cut)
    for name, sizes in plan.sizes.items():
        if name not in modules or not all(may_shrink(modules[name], a, v) for a, v in sizes.items()):
            raise MintError(f"The plan sets sizes that the network does not have, of {name!r}. {REMEDY}")
    if wrong := _miscounted(model, plan, 0):
        raise MintError(f"{wrong} {REMEDY}")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for cut in plan.cuts:
        cut_(model, cut.layer, cut.kind, cut.side, cut.dim, cut.removed)
    adapt_(model)
    set_sizes_(model, plan.sizes)
    forget_computed_(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if wrong := _miscounted(model, plan, 1):
        raise CheckFailed(wrong)
    return model


def _check(model: nn.Module, modules: dict[str, Any], cut: LayerCut) -> None:
    try:  # a plan comes from a file, and may name anything
        module = model.get_parameter(cut.layer) if cut.kind == "parameter" else modules[cut.layer]
        total = module.shape[cut.dim] if cut.kind == "parameter" else _channels(module, cut)
    except (KeyError, AttributeError, IndexError):
        raise MintError(f"The network has no {cut.kind} layer {cut.layer!r}. {REMEDY}") from None
    if total != cut.total:
        raise MintError(
            f"Layer {cut.layer} has {total} channels on its {cut.side} side; "
            f"the plan expects {cut.total}. {REMEDY}"
        )
    if cut.side not in ("in", "out", "both"):
        raise MintError(f"The plan is damaged: layer {cut.layer} has no side {cut.side!r}. {REMEDY}")
    if cut.kind != "parameter":
        check_cut(modules[cut.layer], cut.layer, cut.kind)
    if not 0 < len(set(cut.removed)) < total or min(cut.removed) < 0 or max(cut.removed) >= total:
        raise MintError(
            f"The plan names channels that layer {cut.layer} ({total} wide) cannot lose. {REMEDY}"
        )


def _channels(module: Any, cut: LayerCut) -> int:
    slicer = slicer_of(module, cut.kind)
    return int(slicer.get_in_channels(module) if cut.side == "in" else slicer.get_out_channels(module))


def _miscounted(model: nn.Module, plan: PruningPlan, when: int) -> str | None:
    """The first layer that does not count what the plan says, before (0) or after (1) the removal."""
    real: dict[str, int] = {}
    for layer, _, own in first_owners(model):
        for leaf, parameter in own.items():
            name = f"{layer}.{leaf}".lstrip(".")
            # a bare parameter that is cut counts under its own name, not with its module
            name = name if name in plan.layers else layer
            real[name] = real.get(name, 0) + parameter.numel()
    said = {name: counts[when] for name, counts in plan.layers.items()}
    for name in sorted(real.keys() | said.keys()):
        if real.get(name) != said.get(name):
            return f"Layer {name!r} has {real.get(name)} parameters; the plan says {said.get(name)}."
    if sum(real.values()) != plan.parameters[when]:
        return f"The network has {sum(real.values())} parameters; the plan says {plan.parameters[when]}."
    return None
