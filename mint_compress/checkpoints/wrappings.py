"""The sets of weights in what was unpickled, whatever dicts lie around them, and the one that is meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints.damage import SAVE_WEIGHTS, damaged
from mint_compress.checkpoints.training_keys import is_averaged
from mint_compress.errors import MintError, shown

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema")
"""Names under which weights lie; where there are several, the first of these is taken."""

DEEPEST = 3
"""As deep as {"model": {"state_dict": ...}} and once more."""

MOST_SAID = 6


@dataclass(frozen=True)
class Unwrapped:
    """A module or state_dict out of the dicts around it.

    Attributes
    ----------
    weights
        The module, or the state_dict.
    arch
        The architecture's name beside it.
    sets
        Names of all sets of weights in the file; none where the file is a single one.
    unmet
        The name that was asked for, where no set has it: one within the keys may.
    notes
        Which set was taken, where there are several.
    """

    weights: nn.Module | dict[str, Tensor]
    arch: str | None = None
    sets: tuple[str, ...] = ()
    unmet: str | None = None
    notes: tuple[str, ...] = ()


def unwrapped(found: Any, path: Path, wanted: str | None = None) -> Unwrapped:
    """The module or state_dict in what was unpickled.

    Parameters
    ----------
    found
        From the file.
    path
        The file, for messages.
    wanted
        The name of a set of weights, or a part of one; by default the first of :data:`WRAPPERS` that
        is there, else the only one that is no average of others.

    Raises
    ------
    MintError
        There are no weights, or several sets of which none is the obvious one, or several called so.
    """
    sets = _weight_sets(found, DEEPEST)
    route = None if wanted is None else meant(wanted, sets, path)
    content, name, arch = found, "", None
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            break
        content = items(content)
        if isinstance(content.get("arch"), str):
            arch = content["arch"]
        step = _obvious(content, path) if route is None else _towards(content, route, name)
        if step is None:
            break
        name, content = f"{name}.{step}".strip("."), content[step]
    else:
        if not isinstance(content, dict):
            raise damaged(path, "one dict in another without weights in them")
    if isinstance(content, nn.Module):
        weights: nn.Module | dict[str, Tensor] = _without_parallel(content, path)
    else:
        weights = _state_dict(content, path)
    unmet = wanted if route is None else None
    return Unwrapped(weights, arch, tuple(sets), unmet, _said(name, sets, weights, route is not None))


def meant(wanted: str, names: Iterable[str], path: Path) -> str | None:
    """The dotted name that is ``wanted``, or has it as a part between dots, or else within; None: none is.

    Raises
    ------
    MintError
        Several are as near.
    """
    names = list(names)
    found = [n for n in names if n == wanted] or [n for n in names if wanted in n.split(".")]
    found = found or [n for n in names if wanted and wanted.casefold() in n.casefold()]
    if len(found) > 1:
        raise MintError(
            f"{path} holds several sets of weights that --weights {wanted} can mean: {listed(found)}."
        )
    return found[0] if found else None


def no_such_set(path: Path, wanted: str, names: Sequence[str]) -> MintError:
    """The error for a name of weights that a file does not have; ``names`` are those that it has."""
    holds = f"It holds {listed(names)}." if names else "It holds one set of weights. Leave out --weights."
    return MintError(f"{path} holds no weights called {wanted!r}. {holds}")


def listed(names: Iterable[str]) -> str:
    """Names from a file for a message: the first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_SAID} more" if len(names) > MOST_SAID else ""
    return ", ".join(shown(n) for n in names[:MOST_SAID]) + more


def items(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """What is in a dict of the file; an OrderedDict can have attributes in the place of its methods."""
    return dict(dict.items(mapping))


def _weight_sets(found: Any, depth: int) -> dict[str, nn.Module | dict[Any, Any]]:
    """Dotted name -> module or state_dict."""
    if not isinstance(found, dict) or not depth:
        return {}
    sets: dict[str, nn.Module | dict[Any, Any]] = {}
    for key, value in items(found).items():
        if not isinstance(key, str):
            continue
        if _is_weights(value):
            sets[key] = value
        elif key in WRAPPERS or is_averaged(key):
            sets |= {f"{key}.{name}": inner for name, inner in _weight_sets(value, depth - 1).items()}
    return sets


def _obvious(found: dict[Any, Any], path: Path) -> str | None:
    """The key under which the weights lie; None where they are here already, or nowhere."""
    wrapped = [k for k in WRAPPERS if isinstance(found.get(k), dict | nn.Module)]
    if wrapped:
        return wrapped[0]
    if any(isinstance(v, Tensor) for v in found.values()):
        return None
    named = {k: v for k, v in found.items() if isinstance(k, str)}
    # {"net": state_dict, "epoch": 3}: under whatever name, when there is only one
    states = [k for k, v in named.items() if isinstance(v, nn.Module) or _is_state_dict(v)]
    states = [k for k in states if _is_weights(found[k])] or states
    trained = [k for k in states if not is_averaged(k)]
    sole = next((names for names in (states, trained) if len(names) == 1), None)
    if sole is None and states:
        raise MintError(
            f"{path} holds several sets of weights: {listed(states)}. Choose with --weights NAME."
        )
    return sole[0] if sole else None


def _towards(found: dict[Any, Any], route: str, walked: str) -> str | None:
    """The next key on the way to a set; names may have dots in them."""
    ahead = route.removeprefix(walked).removeprefix(".") if walked else route
    fits = [k for k in found if isinstance(k, str) and k and (ahead == k or ahead.startswith(f"{k}."))]
    return max(fits, key=len, default=None)


def _said(
    name: str, sets: dict[str, nn.Module | dict[Any, Any]], taken: nn.Module | dict[str, Tensor], asked: bool
) -> tuple[str, ...]:
    """A line about which set was taken, where there are others."""
    others = [n for n, content in sets.items() if n != name and _is_akin(content, taken)]
    if not others:
        return ()
    choice = "as asked" if asked else "--weights NAME takes another"
    return (f"took the weights {shown(name)}, {choice}; the file holds {listed(others)} as well",)


def _is_akin(one: nn.Module | dict[Any, Any], other: nn.Module | dict[Any, Any]) -> bool:
    """Whether both may be weights of networks: modules, or tensors of which some are called the same."""
    if isinstance(one, nn.Module) or isinstance(other, nn.Module):
        return True
    leaves = [{k.rpartition(".")[2] for k in items(d) if isinstance(k, str)} for d in (one, other)]
    return bool(leaves[0] & leaves[1])


def _without_parallel(module: nn.Module, path: Path) -> nn.Module:
    if not isinstance(module, nn.DataParallel):
        return module
    parts = vars(module).get("_modules")
    inner = items(parts).get("module") if isinstance(parts, dict) else None
    if not isinstance(inner, nn.Module):
        raise damaged(path, "a DataParallel without a module in it")
    return inner


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise MintError(f"{path} holds a {type(found).__name__}, not weights. Save them: {SAVE_WEIGHTS}")
    found = items(found)
    tensors = {k: v for k, v in found.items() if not (isinstance(k, str) and k.endswith("_extra_state"))}
    strange = [k for k, v in tensors.items() if not isinstance(v, Tensor) or not isinstance(k, str)]
    if not tensors or strange:
        keys = ", ".join(_key(k) for k in list(found)[:5]) or "nothing"
        raise MintError(
            f"{path} holds no state_dict, alone or under {', '.join(WRAPPERS)}; it holds {keys}. "
            f"Save the weights: {SAVE_WEIGHTS}"
        )
    return tensors


def _key(key: object) -> str:
    """A key for a message; tensors and layers can be keys, and would run their own code to be printed."""
    return shown(key) if isinstance(key, str | int | float | None) else type(key).__name__


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    values = items(value).values()
    return bool(values) and all(isinstance(v, Tensor) for v in values)


def _is_weights(value: object) -> bool:
    """A module, or tensors that are more than statistics: not all of one dimension."""
    if not isinstance(value, dict) or not _is_state_dict(value):
        return isinstance(value, nn.Module)
    return any(tensor.ndim > 1 for tensor in items(value).values())
