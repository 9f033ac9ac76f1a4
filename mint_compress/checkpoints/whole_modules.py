"""A whole module out of a file: its attributes are whatever the file says, and are checked before use.

Its classes are layers that may be built, but what lies in an object of them need not be what they expect.
What the program itself reads of any module (its parts, parameters, buffers and sizes) is checked here. What
only the layers' own code reads is not: that code is called in :func:`working`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints.damage import SAVE_WEIGHTS, damaged
from mint_compress.checkpoints.tensors import check_finite, check_name, check_storage
from mint_compress.errors import MintError, first_line, shown
from mint_compress.nn.input_selection import Selecting, is_selection
from mint_compress.surgery.layer_sizes import LARGEST, size_attributes

MOST_MODULES = 100_000
MOST_NESTED = 100

SLOTS: dict[str, type] = {"_modules": nn.Module, "_parameters": Tensor, "_buffers": Tensor}

BARE = {key: type(value) for key, value in vars(nn.Module()).items() if value is not None}
"""What PyTorch itself keeps in every module, and of what type."""

REACHED = frozenset(
    (
        *("modules", "named_modules", "children", "named_children", "get_submodule", "add_module"),
        *("parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "requires_grad_"),
        *("register_buffer", "register_parameter", "register_forward_hook", "register_forward_pre_hook"),
        *("eval", "train", "float", "cpu", "to", "apply", "zero_grad", "forward", "extra_repr"),
        *("_apply", "_named_members", "_save_to_state_dict", "_get_name", "_call_impl"),
    )
)
"""Methods by which the program, and PyTorch in its name, go through a module: no attribute may hide one."""


@contextmanager
def working(module: nn.Module, path: Path) -> Iterator[None]:
    """Only the code of the classes of ``module`` runs in this block, on attributes from the file."""
    try:
        yield
    except Exception as error:  # whatever PyTorch's layers, or those of a trusted module, raise
        what = f"a {type(module).__name__} that does not work ({shown(first_line(error))})"
        raise damaged(path, what) from None


def checked_module(module: nn.Module, path: Path) -> nn.Module:
    """``module`` in float32, after everything that the program reads of it was looked at.

    Raises
    ------
    MintError
        Its parts are not what modules consist of, it is too large or too deep, its tensors are more
        than their bytes in the file, or hold NaN or infinity.
    """
    parts = dict(_parts(module, path))
    everything = {
        f"{name}.{key}".strip("."): value
        for name, part in parts.items()
        for key, value in (*part._parameters.items(), *part._buffers.items(), *vars(part).items())
        if isinstance(value, Tensor)
    }
    check_storage(everything, path)
    for name, part in parts.items():
        if isinstance(part, Selecting):
            chosen = part._buffers.get("selected")
            if chosen is None or not is_selection(chosen, LARGEST):
                raise damaged(path, f"a network whose {shown(name)!r} selects no channels")
    with working(module, path):
        module.float()
    check_finite(_kept(parts), path)
    return module


def _parts(module: nn.Module, path: Path) -> Iterator[tuple[str, nn.Module]]:
    """Every part once, with its qualified name, the whole first; each is checked before it is gone into."""
    seen: set[int] = set()
    waiting = [("", module, 0)]
    visits = 0
    while waiting:
        name, part, depth = waiting.pop()
        visits += 1
        # layers that share layers are visited as often as they are shared
        if visits >= MOST_MODULES:
            raise damaged(path, f"a network of {MOST_MODULES:,} layers or more")
        if depth > MOST_NESTED:
            raise damaged(path, f"a network of layers nested more than {MOST_NESTED} deep")
        if id(part) not in seen:
            _check_part(part, name, path)
            yield name, part
        seen.add(id(part))
        inner = [(key, child) for key, child in part._modules.items() if child is not None]
        waiting += [(f"{name}.{key}".strip("."), child, depth + 1) for key, child in reversed(inner)]


def _check_part(part: nn.Module, name: str, path: Path) -> None:
    own = vars(part)
    what = f"a network whose {shown(name) or type(part).__name__!r} "
    check_name(name, path)
    if not all(isinstance(key, str) and len(key) < 100 for key in own):
        raise damaged(path, what + "has attributes without a name")
    for slot, kind in SLOTS.items():
        if not _is_slots(own.get(slot), kind):
            raise damaged(path, what + f"has no valid {slot}")
    if strange := [key for key, kind in BARE.items() if key in own and not _is_bare(own[key], kind)]:
        raise damaged(path, what + f"has no valid {strange[0]}")
    if any(own.get(key) for key in BARE if key.endswith("_hooks")):
        raise MintError(
            f"{path}: {shown(name) or type(part).__name__!r} has hooks, which are code. "
            f"Save the weights alone, {SAVE_WEIGHTS}, and give --arch."
        )
    if hidden := sorted(REACHED & own.keys()):
        raise damaged(path, what + f"has an attribute in the place of its method {hidden[0]}")
    for size in size_attributes(part):
        if size in own and not _is_size(own[size]):
            raise damaged(path, what + f"has no valid {size}")


def _is_slots(slots: object, kind: type) -> bool:
    return _is_bare(slots, dict) and all(
        isinstance(key, str) and (value is None or isinstance(value, kind))
        for key, value in slots.items()  # type: ignore[attr-defined]
    )


def _is_bare(value: object, kind: type) -> bool:
    # older files have an OrderedDict here, which can have attributes in the place of its methods
    plain = type(value) is OrderedDict and not vars(value)
    return plain if kind is OrderedDict else type(value) is kind or (kind is dict and plain)


def _is_size(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(n, int) for n in value)
    return value is None or isinstance(value, int | float)


def _kept(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors that a state_dict has: all parameters, and the buffers that are saved."""
    kept: dict[str, Any] = {}
    for name, part in parts.items():
        passing = vars(part).get("_non_persistent_buffers_set", ())
        saved = {key: value for key, value in part._buffers.items() if key not in passing}
        kept |= {f"{name}.{key}".strip("."): v for key, v in {**part._parameters, **saved}.items()}
    return {key: value for key, value in kept.items() if value is not None}
