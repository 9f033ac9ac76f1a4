"""The receipt from the modules: each holds what its own attributes say, and what the plan predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from mint_compress.errors import CheckFailed
from mint_compress.exporting.layer_breakdown import calls
from mint_compress.nn.contexts import evaluating, requiring_gradients
from mint_compress.nn.counting import first_owners, parameters
from mint_compress.nn.devices import device_of
from mint_compress.nn.io import Inputs, run, tensors_in, to
from mint_compress.nn.layers import WEIGHTED, fan_in, out_channels


def check_modules(original: nn.Module, pruned: nn.Module, predicted: Mapping[str, int] | None) -> int:
    """Compare every module's parameters with the plan and with its own attributes; return the total."""
    weighted = {name for name, m in original.named_modules() if isinstance(m, WEIGHTED)}
    before = {name: count for name, count in _first_owned(original).items() if name in weighted}
    named, owned = dict(pruned.named_modules()), _first_owned(pruned)
    expected = {} if predicted is None else {**before, **_by_module(predicted, pruned)}
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


def _by_module(predicted: Mapping[str, int], pruned: nn.Module) -> dict[str, int]:
    """What a plan says of layers and of bare parameters, which count by themselves there."""
    modules = {name for name, _ in pruned.named_modules()}
    bare = {name for name, _ in pruned.named_parameters(remove_duplicate=False)}
    found: dict[str, int] = {}
    for name, count in predicted.items():
        if name not in modules and name not in bare:
            raise CheckFailed(f"The plan expects a layer '{name}' that the pruned network does not have.")
        module = name if name in modules else name.rpartition(".")[0]
        found[module] = found.get(module, 0) + count
    return found


def never_run(model: nn.Module, example_inputs: Inputs) -> tuple[str, ...]:
    """What has no part in a pass in eval mode, by qualified name.

    Modules with parameters of their own that are not called, and bare parameters of others, such as the
    embedding of what is masked in training.
    """
    with _Taking() as taking:
        called = set(calls(model, example_inputs))
    idle = []
    for name, module in model.named_modules():
        if name not in called:
            idle += [name] if _own_parameters(module) else []
        elif not type(module).__module__.startswith("torch."):
            bare = module.named_parameters(prefix=name, recurse=False)
            idle += [leaf for leaf, parameter in bare if id(parameter) not in taking.taken]
    return tuple(idle)


def without_effect(model: nn.Module, example_inputs: Inputs) -> tuple[str, ...]:
    """Modules that are called and whose own parameters no output depends on, by qualified name.

    An auxiliary head that always runs, a last norm of which nobody uses what it gives: exporters leave them
    out. What is passed on without gradients counts as unused; that the export computes the same all the same
    is for parity to say.
    """
    with evaluating(model), requiring_gradients(model), torch.enable_grad():
        outputs = tensors_in(run(model, to(example_inputs, device_of(model))))
        floating = [t.sum().double() for t in outputs if t.requires_grad]
        if not floating:
            return ()
        wanted = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(torch.stack(floating).sum(), wanted, allow_unused=True)
    dead = {id(p) for p, gradient in zip(wanted, found, strict=True) if gradient is None}
    own = {name: [*module.parameters(recurse=False)] for name, module in model.named_modules()}
    return tuple(name for name, held in own.items() if held and all(id(p) in dead for p in held))


class _Taking(TorchFunctionMode):
    """Sees which parameters operations take; to ask for a shape or a type is none."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            self.taken |= {id(x) for x in tree_iter((args, kwargs)) if isinstance(x, nn.Parameter)}
        return func(*args, **(kwargs or {}))


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
