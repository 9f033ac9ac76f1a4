"""The receipt from the modules: each holds what its own attributes say, and what the plan predicted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mint_compress.errors import CheckFailed
from mint_compress.exporting.layer_breakdown import calls
from mint_compress.nn.counting import first_owners, parameters
from mint_compress.nn.io import Inputs
from mint_compress.nn.layers import WEIGHTED, fan_in, out_channels


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


def never_run(model: nn.Module, example_inputs: Inputs) -> tuple[str, ...]:
    """Modules with parameters of their own that are not called in eval mode, by qualified name."""
    called = set(calls(model, example_inputs))
    return tuple(
        name for name, module in model.named_modules() if name not in called and _own_parameters(module)
    )


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
