"""What a file may decide about the network that is built for it: known builders, switches, some sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.registry import TIERS, is_known
from mint_compress.errors import MintError, shown
from mint_compress.importing import inside

# a header may ask for these arguments and no others: some (weights, checkpoint_path) open other files
SAFE_SWITCHES = ("aux_logits", "aux_loss", "transform_input")
SAFE_NUMBERS = {"num_classes": 10**6, "in_chans": 1024, "img_size": 4096, "image_size": 4096}
SAFE_LISTS = {"hidden": 2**16, "img_size": 4096, "image_size": 4096}
MOST_SIZES = 64


def permitted(saved: Builder | None, path: Path, trust: tuple[str, ...]) -> Builder:
    """The builder that a file names, if a file may name it; arguments are limited as well.

    Raises
    ------
    MintError
        It names none, or one outside the known ones and ``trust``, or gives it arguments that a file may
        not decide.
    """
    if saved is None:
        raise MintError(
            f"{path} does not say which builder made it. Give --arch package.module:callable, "
            "or load(path, builder=callable)."
        )
    module, name = saved.name.partition(":")[0], shown(saved.name)
    refused = sorted(key for key, value in saved.kwargs.items() if not _is_safe(key, value))
    if refused and module in TIERS:
        raise MintError(
            f"{path} calls {name} with {shown(refused[0])!r}: {shown(saved.kwargs[refused[0]])}, which a "
            "file may not decide. Give load(path, builder=callable) or --arch package.module:callable."
        )
    if module in TIERS and not is_known(saved.name):
        raise MintError(
            f"{path} names the builder {name}, which is not installed. Install or update {module}: "
            f"pip install -U {module}"
        )
    if module not in TIERS and not inside(module, trust):
        raise MintError(
            f"{path} names the builder {name}, which is not in the zoo, torchvision or timm. Only if you "
            f"made this file: --trust {shown(module)} (it runs that module's code), or give --arch."
        )
    return saved


def _is_safe(name: str, value: Any) -> bool:
    """Whether a file may have a known builder called with this: a switch, or a size within reason."""
    if name in SAFE_SWITCHES:
        return isinstance(value, bool)
    if not isinstance(value, list):
        return _is_within(value, SAFE_NUMBERS.get(name, -1))
    largest = SAFE_LISTS.get(name, -1)
    return name in SAFE_LISTS and len(value) <= MOST_SIZES and all(_is_within(n, largest) for n in value)


def _is_within(size: Any, largest: int) -> bool:
    return type(size) is int and 0 <= size <= largest
