"""Which architecture a state_dict belongs to: the one that is asked for or recorded, or whatever it fits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.building import accepts_classes, build, outline, shapes_of
from mint_compress.checkpoints.registry import TIERS, is_known, resolve, with_tier
from mint_compress.errors import MintError, shown
from mint_compress.surgery.layer_sizes import set_tensors_

Shapes = dict[str, tuple[int, ...]]


def filled(
    tensors: Mapping[str, Tensor], recorded: str | None, arch: str | None, path: Path
) -> tuple[nn.Module, Builder, str]:
    """The architecture with these weights in it, and how it was found.

    Parameters
    ----------
    tensors
        A state_dict.
    recorded
        The architecture's name in the file, which may be wrong.
    arch
        What the user asks for instead.
    path
        The file; its name breaks ties between architectures of the same keys and shapes.

    Raises
    ------
    MintError
        None fits, or several, or not the one that is asked for.
    """
    shapes = {k: tuple(t.shape) for k, t in tensors.items()}
    module = None
    if arch is not None:
        name, how = resolve(arch), "as asked"
        if name.partition(":")[0] in TIERS:
            builder, difference = fitted(name, shapes)
        else:
            module, builder, difference = _called(name, shapes)
        if difference:
            raise MintError(f"{path} does not fit --arch {arch}: {difference}.")
    else:
        builder, how = _identified(shapes, recorded, path)
    module = build(builder) if module is None else module
    set_tensors_(module, tensors, {})
    return module, builder, how


def _identified(shapes: Shapes, recorded: str | None, path: Path) -> tuple[Builder, str]:
    named = with_tier(recorded) if recorded else None
    if named:
        # what a file says about itself may be wrong, or a name that others use too
        with suppress(MintError):
            builder, difference = fitted(named, shapes)
            if not difference:
                return builder, "recorded in the file"
    fits: dict[str, Builder] = {}
    for name in fingerprints.candidates(shapes):
        # later tiers are not looked at, nor imported, when an earlier one fits
        if fits and fingerprints.tier(name) > max(map(fingerprints.tier, fits)):
            break
        if name.startswith("timm:") and not is_known(name):
            raise MintError(f"{path} has the keys and shapes of {name}, which needs timm: pip install timm")
        builder, difference = fitted(name, shapes)
        if not difference:
            fits[name] = builder
    if not fits:
        raise _fits_nothing(shapes, named, path)
    chosen = next(iter(fits)) if len(fits) == 1 else fingerprints.mentioned(path.stem, fits)
    if chosen is None:
        several = ", ".join(list(fits)[:6]) + (f" and {len(fits) - 6} more" if len(fits) > 6 else "")
        raise MintError(f"{path} fits several architectures: {several}. Choose with --arch.")
    return fits[chosen], "by its keys and shapes" if len(fits) == 1 else "by its keys, shapes and file name"


def _fits_nothing(shapes: Shapes, named: str | None, path: Path) -> MintError:
    nearest = named or fingerprints.nearest(shapes, path.stem)
    remedy = "Give --arch package.module:callable for a network of your own."
    if not is_known(nearest):
        return MintError(f"{path} fits no builder. The nearest is {nearest} (pip install timm). {remedy}")
    _, difference = fitted(nearest, shapes)
    return MintError(f"{path} fits no builder. The nearest is {nearest}: {difference}. {remedy}")


def fitted(name: str, shapes: Shapes) -> tuple[Builder, str | None]:
    """A known builder with the arguments that these shapes ask for, and what still differs."""
    kwargs = _auxiliary(name, shapes)
    own = outline(name, kwargs)
    classes = _classes(own, shapes)
    if classes is not None:
        kwargs["num_classes"] = classes
        own = outline(name, kwargs)
    return Builder(name, kwargs), _difference(own, shapes)


def _called(name: str, shapes: Shapes) -> tuple[nn.Module, Builder, str | None]:
    """The same for a callable of the user's, which is called for real, twice at most."""
    builder = Builder(name)
    module = build(builder)
    classes = _classes(shapes_of(module), shapes)
    if classes is not None and accepts_classes(name):
        builder = Builder(name, {"num_classes": classes})
        module = build(builder)
    return module, builder, _difference(shapes_of(module), shapes)


def _auxiliary(name: str, shapes: Shapes) -> dict[str, Any]:
    """Whether torchvision is to build its auxiliary heads: as the file has them."""
    present = any(k.startswith(fingerprints.AUXILIARY) for k in shapes)
    if name in ("torchvision:googlenet", "torchvision:inception_v3"):
        return {"aux_logits": present}
    return (
        {"aux_loss": True} if present and name.startswith(("torchvision:fcn", "torchvision:deeplab")) else {}
    )


def _classes(own: Shapes, shapes: Shapes) -> int | None:
    """The number of classes of the file, where its head is not the builder's default."""
    # the head comes last in every builder's state_dict; some have none unless asked
    changed = [k for k in shapes if own.get(k) != shapes[k] and shapes[k]]
    changed = [k for k in own if k in changed] or changed
    return shapes[changed[-1]][0] or None if changed else None


def _difference(own: Shapes, shapes: Shapes) -> str | None:
    """The first key, or else shape, in which a file differs from an architecture."""
    missing = [k for k in own if k not in shapes and not k.endswith("num_batches_tracked")]
    unknown = [k for k in shapes if k not in own]
    if missing or unknown:
        lacks = f"the file lacks its key {missing[0]!r}" if missing else ""
        has = f"the file has a key {shown(unknown[0])!r} that it does not know" if unknown else ""
        return " and ".join(filter(None, (lacks, has)))
    for key, shape in own.items():
        if key in shapes and shapes[key] != shape:
            return f"{key!r} is {shapes[key]} in the file and {shape} there"
    return None
