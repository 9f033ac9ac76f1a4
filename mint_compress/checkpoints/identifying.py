"""Which architecture a state_dict belongs to: the one that is asked for or recorded, or whatever it fits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.building import accepts_classes, build, outline, shapes_of
from mint_compress.checkpoints.prefixes import Choice, Part, chosen, parts
from mint_compress.checkpoints.reading import Checkpoint
from mint_compress.checkpoints.registry import (
    TIERS,
    classes_by_default,
    is_detection,
    is_known,
    resolve,
    with_tier,
)
from mint_compress.checkpoints.training_keys import is_training
from mint_compress.checkpoints.wrappings import listed, meant, no_such_set
from mint_compress.errors import MintError, shown
from mint_compress.surgery.layer_sizes import set_tensors_

Shapes = dict[str, tuple[int, ...]]
NEAR = 0.3
"""Share of keys in common below which no architecture is worth naming."""


@dataclass(frozen=True)
class Filled:
    """An architecture with weights in it; ``notes`` say in a line each how it was found."""

    module: nn.Module
    builder: Builder
    notes: tuple[str, ...]


def filled(checkpoint: Checkpoint, arch: str | None, path: Path) -> Filled:
    """The architecture with the weights of a checkpoint in it.

    The network may lie below any prefix of the file's keys, and other keys beside it.

    Parameters
    ----------
    checkpoint
        With tensors, and perhaps the architecture's name in the file, which may be wrong.
    arch
        What the user asks for instead.
    path
        The file; its name breaks ties between architectures of the same keys and shapes.

    Raises
    ------
    MintError
        None fits, or several, or not the one that is asked for; or what fits is one part of a larger
        network; or nothing that fits is called as asked.
    """
    tensors = checkpoint.tensors or {}
    everything = {k: tuple(t.shape) for k, t in tensors.items()}
    module = None
    if arch is not None:
        name, how = resolve(arch), "as asked"
        known = name.partition(":")[0] in TIERS
        default = None if known else build(Builder(name))
        own = outline(name, {}) if default is None else shapes_of(default)
        choice = _for_builder(own, checkpoint, path)
        shapes = choice.part.shapes(everything)
        if default is None:
            builder, difference = fitted(name, shapes)
        else:
            module, builder, difference = _called(name, default, shapes)
        if difference:
            raise MintError(f"{path} does not fit --arch {arch}: {difference}.")
    else:
        choice = _for_any_builder(everything, checkpoint, path)
        builder, how = _identified(choice.part.shapes(everything), checkpoint.arch, path)
        if checkpoint.unmet is None:
            _check_further(choice, everything, builder, path)
    module = build(builder) if module is None else module
    set_tensors_(module, {name: tensors[key] for name, key in choice.part.keys.items()}, {})
    notes = choice.notes(asked=checkpoint.unmet is not None)
    return Filled(module, builder, (*notes, f"architecture {builder.name}, {how}"))


def _for_builder(own: Shapes, checkpoint: Checkpoint, path: Path) -> Choice:
    """The part of the file that has all keys of an architecture, or else the most of them."""
    found = parts(checkpoint.tensors or {})
    needed = set(fingerprints.essential(own))
    fits = {part.prefix: part for part in found if needed <= part.keys.keys()}
    if not fits and checkpoint.unmet is None:
        likeliest = max(found, key=lambda part: len(needed & part.keys.keys()))
        fits = {likeliest.prefix: likeliest}
    return _among(list(fits.values()), checkpoint, path)


def _for_any_builder(everything: Shapes, checkpoint: Checkpoint, path: Path) -> Choice:
    """The part of the file that is a known architecture, or else resembles one the most."""
    found = parts(everything)
    if checkpoint.arch and checkpoint.unmet is None and (named := with_tier(checkpoint.arch)):
        # what a file says about itself may be wrong, or a name that others use too
        with suppress(MintError):
            choice = _for_builder(outline(named, {}), checkpoint, path)
            if not fitted(named, choice.part.shapes(everything))[1]:
                return choice
    fits = [part for part in found if fingerprints.candidates(part.shapes(everything))]
    if not fits and checkpoint.unmet is None:
        large = [part for part in found if 2 * len(part.keys) >= len(everything)]
        fits = [max(large, key=lambda part: fingerprints.closeness(part.keys)) if large[1:] else large[0]]
    return _among(fits, checkpoint, path)


def _among(fits: list[Part], checkpoint: Checkpoint, path: Path) -> Choice:
    """The part that was asked for, or the one to be taken by default."""
    keys = checkpoint.tensors or {}
    if checkpoint.unmet is None:
        return chosen(fits, keys)
    names = sorted({part.name for part in fits} - {""})
    name = meant(checkpoint.unmet, names, path)
    if name is None:
        raise no_such_set(path, checkpoint.unmet, (*checkpoint.sets, *names))
    return chosen(fits, keys, name)


def _check_further(choice: Choice, shapes: Shapes, builder: Builder, path: Path) -> None:
    """Refuse to take a part of a network for the whole, unless the user says so."""
    layers = [key for key in choice.further if not is_training(key) and _is_of_layer(key, shapes[key])]
    if layers:
        raise MintError(
            f"{path} has {builder.name} under {shown(choice.part.prefix)} and further layers beside it: "
            f"{listed(layers)}. Give --arch {builder.name} for that part alone, or --arch "
            "package.module:callable for the whole network."
        )


def _is_of_layer(key: str, shape: tuple[int, ...]) -> bool:
    # class weights, counters, and the mean of images, of 1 x 3 x 1 x 1, belong to no layer
    named = key.rpartition(".")[2] == "weight" and len(shape) > 1
    return named or sum(length > 1 for length in shape) > 1


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
    remedy = "Give --arch package.module:callable for a network of your own."
    if named is None and fingerprints.closeness(shapes) < NEAR:
        return MintError(f"{path} fits no builder, and its keys resemble those of none. {remedy}")
    nearest = named or fingerprints.nearest(shapes, path.stem)
    if not is_known(nearest):
        return MintError(f"{path} fits no builder. The nearest is {nearest} (pip install timm). {remedy}")
    _, difference = fitted(nearest, shapes)
    return MintError(f"{path} fits no builder. The nearest is {nearest}: {difference}. {remedy}")


def fitted(name: str, shapes: Shapes) -> tuple[Builder, str | None]:
    """A known builder with the arguments that these shapes ask for, and what still differs."""
    kwargs = _auxiliary(name, shapes)
    own = outline(name, kwargs)
    classes = _classes_of_boxes(name, own, shapes) if is_detection(name) else _classes(own, shapes)
    if classes is not None:
        kwargs["num_classes"] = classes
        own = outline(name, kwargs)
    return Builder(name, kwargs), _difference(own, shapes)


def _called(name: str, module: nn.Module, shapes: Shapes) -> tuple[nn.Module, Builder, str | None]:
    """The same for a callable of the user's and what it makes by default; it may be called once more."""
    builder, own = Builder(name), shapes_of(module)
    classes = _classes(own, shapes)
    if classes is not None and accepts_classes(name):
        builder = Builder(name, {"num_classes": classes})
        module = build(builder)
    difference = _difference(shapes_of(module), shapes)
    if difference and own.keys() == shapes.keys() and not builder.kwargs:
        difference += f". If these are its classes, let {name} take num_classes, or make {classes}"
    return module, builder, difference


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
    head = _head(own, shapes)
    return shapes[head][0] or None if head else None


def _classes_of_boxes(name: str, own: Shapes, shapes: Shapes) -> int | None:
    """The same of a detector, whose heads have a multiple of them: for each side of a box, or each anchor."""
    head = _head(own, shapes)
    if head not in own:
        return None
    return shapes[head][0] * classes_by_default(name) // own[head][0] or None


def _head(own: Shapes, shapes: Shapes) -> str | None:
    """The last key whose shape is another one, if there is any."""
    # the head comes last in every builder's state_dict; some have none unless asked
    changed = [k for k in shapes if own.get(k) != shapes[k] and shapes[k]]
    changed = [k for k in own if k in changed] or changed
    return changed[-1] if changed else None


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
