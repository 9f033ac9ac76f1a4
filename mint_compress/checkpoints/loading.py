"""From a path to a network that is ready to be pruned: which builder, which weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.builders import Builder, builder_of, input_shape_of, remember_builder
from mint_compress.checkpoints.files import Checkpoint, read_checkpoint
from mint_compress.checkpoints.registry import (
    TIERS,
    accepts_classes,
    build,
    is_known,
    outline,
    permitted,
    resolve,
    safe_argument,
    shapes_of,
    with_tier,
)
from mint_compress.checkpoints.safe_load import DAMAGED, damaged
from mint_compress.errors import MintError, first_line, shown
from mint_compress.nn.input_selection import restore_selecting_
from mint_compress.surgery.layer_sizes import set_shapes_, set_tensors_

__all__ = ["Builder", "LoadedModel", "builder_of", "input_shape_of", "load", "load_model", "remember_builder"]

Shapes = dict[str, tuple[int, ...]]

# torchvision sets an attribute of these that no state_dict tells: whether ImageNet's mean and standard
# deviation are turned into those of the weights that Google trained
TRANSFORMS_INPUT = ("torchvision:googlenet", "torchvision:inception_v3")


@dataclass(frozen=True)
class LoadedModel:
    """A network from a file: on the CPU, in eval mode, in float32.

    ``input_shape`` is without the batch; ``plan`` is the one the file was pruned by, if it was;
    ``notes`` say in a line each how the file was understood.
    """

    module: nn.Module
    builder: Builder | None
    input_shape: tuple[int, ...] | None
    plan: dict[str, Any] | None
    notes: tuple[str, ...]


def load_model(
    path: str | os.PathLike[str], *, arch: str | None = None, trust: Iterable[str] = ()
) -> LoadedModel:
    """Read a checkpoint and put its weights into the architecture they belong to.

    Parameters
    ----------
    path
        See :func:`mint_compress.checkpoints.files.read_checkpoint`.
    arch
        A zoo or torchvision builder, ``timm:NAME``, or ``package.module:callable``. Without it the
        architecture that the file records decides if its keys and shapes agree, else keys and shapes
        alone, in the order zoo, torchvision, timm; the file's name breaks ties.
    trust
        Modules that may be imported because the file names them.

    Returns
    -------
    LoadedModel
        Its module carries its builder and input shape, see :func:`builder_of`.

    Raises
    ------
    MintError
        The file cannot be read, or fits no architecture, or several.
    """
    file, trusted = Path(path), tuple(trust)
    checkpoint = read_checkpoint(file, trust=trusted)
    plan = None
    notes = checkpoint.notes
    if checkpoint.header is not None:
        maker = None if arch is None else Builder(resolve(arch))
        module = _rebuilt(checkpoint, file, maker, trusted)
        builder, shape, plan = builder_of(module), input_shape_of(module), checkpoint.header.get("plan")
        notes += (f"architecture from the file: {builder.name if builder else 'unnamed'}",)
    elif checkpoint.module is not None:
        module = checkpoint.module
        try:
            builder = _recognised(module.eval())
        except MintError:
            raise
        except DAMAGED as error:
            # the attributes of an unpickled module are whatever the file says
            what = f"a {type(module).__name__} that does not work ({shown(first_line(error))})"
            raise damaged(file, what) from None
        shape = fingerprints.input_shape(builder.name) if builder else None
        notes += (f"the file holds the whole model, a {type(module).__name__}",)
        if arch is not None:
            notes += (f"--arch {arch} was not needed",)
    else:
        assert checkpoint.tensors is not None
        module, builder, how = _filled(checkpoint.tensors, checkpoint.arch, arch, file)
        shape = fingerprints.input_shape(builder.name)
        notes += (f"architecture {builder.name}, {how}",)
        if builder.name in TRANSFORMS_INPUT:
            notes += (
                "built with transform_input=False, but torchvision's own weights need True: "
                "for those give --arch package.module:callable, a function of yours that sets it",
            )
    remember_builder(module, builder, shape)
    return LoadedModel(module.eval(), builder, shape, plan, notes)


def load(
    path: str | os.PathLike[str],
    *,
    builder: Callable[[], nn.Module] | None = None,
    trust: Iterable[str] = (),
) -> nn.Module:
    """Rebuild a module that :func:`mint_compress.checkpoints.files.save` wrote, pruned or not.

    Parameters
    ----------
    path
        A .safetensors file with this program's header.
    builder
        Makes the architecture as it was before it was pruned, for modules that no known builder made.
    trust
        Modules that may be imported because the file names a builder in them.

    Returns
    -------
    nn.Module
        On the CPU, in eval mode; its parameters are new and require gradients: call ``train()`` and
        make the optimizer.

    Raises
    ------
    MintError
        The file cannot be read or was not written by ``save``, or its builder is unknown.
    """
    file = Path(path)
    checkpoint = read_checkpoint(file, trust=trust)
    if checkpoint.header is None:
        raise MintError(f"{file} was not written by mint_compress.save. Read it with load_model(path).")
    return _rebuilt(checkpoint, file, builder, tuple(trust)).eval()


def _rebuilt(
    checkpoint: Checkpoint,
    path: Path,
    maker: Builder | Callable[[], nn.Module] | None,
    trust: tuple[str, ...],
) -> nn.Module:
    header = checkpoint.header or {}
    saved = _saved_builder(header, path)
    if maker is None:
        maker = _usable(saved, path, trust)
        classes = maker.kwargs.get("num_classes")
        # a head is not pruned; memory for one of a million classes is not to be had for nothing
        if classes and not any(classes in t.shape for t in (checkpoint.tensors or {}).values()):
            raise MintError(
                f"{path} is said to have {shown(classes)} classes and has no tensor of that size."
            )
    module = build(maker) if isinstance(maker, Builder) else maker()
    try:
        restore_selecting_(module, header.get("selecting") or [], checkpoint.tensors or {})
        set_shapes_(module, header["shapes"])
        set_tensors_(module, checkpoint.tensors or {}, header.get("ties") or {})
        shape = header.get("input_shape")
        if shape is not None and not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
            raise ValueError(f"input shape {shown(shape)}")
        remember_builder(module, maker if isinstance(maker, Builder) else saved, shape)
    except MintError as error:
        raise MintError(f"{path} does not fit {getattr(maker, 'name', 'the builder')}. {error}") from None
    except DAMAGED as error:
        raise MintError(f"{path} has a header that cannot be used: {error}. Save the model again.") from None
    return module


def _saved_builder(header: Mapping[str, Any], path: Path) -> Builder | None:
    saved = header.get("builder")
    if saved is None:
        return None
    try:
        return Builder(str(saved["name"]), dict(saved["kwargs"]))
    except DAMAGED:
        raise MintError(f"{path} has a header without a valid builder. Save the model again.") from None


def _usable(saved: Builder | None, path: Path, trust: tuple[str, ...]) -> Builder:
    """The builder that a file names, if a file may name it; arguments are limited as well."""
    if saved is None:
        raise MintError(
            f"{path} does not say which builder made it. Give --arch package.module:callable, "
            "or load(path, builder=callable)."
        )
    module, name = saved.name.partition(":")[0], shown(saved.name)
    refused = sorted(key for key, value in saved.kwargs.items() if not safe_argument(key, value))
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
    if not permitted(saved.name, trust):
        raise MintError(
            f"{path} names the builder {name}, which is not in the zoo, torchvision or timm. Only if you "
            f"made this file: --trust {shown(module)} (it runs that module's code), or give --arch."
        )
    return saved


def _filled(
    tensors: Mapping[str, Tensor], recorded: str | None, arch: str | None, path: Path
) -> tuple[nn.Module, Builder, str]:
    """The architecture with these weights in it, and how it was found."""
    shapes = {k: tuple(t.shape) for k, t in tensors.items()}
    module = None
    if arch is not None:
        name, how = resolve(arch), "as asked"
        if name.partition(":")[0] in TIERS:
            builder, difference = _fitted(name, shapes)
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
            builder, difference = _fitted(named, shapes)
            if not difference:
                return builder, "recorded in the file"
    fits: dict[str, Builder] = {}
    for name in fingerprints.candidates(shapes):
        # later tiers are not looked at, nor imported, when an earlier one fits
        if fits and fingerprints.tier(name) > max(map(fingerprints.tier, fits)):
            break
        if name.startswith("timm:") and not is_known(name):
            raise MintError(f"{path} has the keys and shapes of {name}, which needs timm: pip install timm")
        builder, difference = _fitted(name, shapes)
        if not difference:
            fits[name] = builder
    if not fits:
        raise _fits_nothing(shapes, named, path)
    chosen = next(iter(fits)) if len(fits) == 1 else fingerprints.mentioned(path.stem, fits)
    if chosen is None:
        shown = ", ".join(list(fits)[:6]) + (f" and {len(fits) - 6} more" if len(fits) > 6 else "")
        raise MintError(f"{path} fits several architectures: {shown}. Choose with --arch.")
    return fits[chosen], "by its keys and shapes" if len(fits) == 1 else "by its keys, shapes and file name"


def _fits_nothing(shapes: Shapes, named: str | None, path: Path) -> MintError:
    nearest = named or fingerprints.nearest(shapes, path.stem)
    remedy = "Give --arch package.module:callable for a network of your own."
    if not is_known(nearest):
        return MintError(f"{path} fits no builder. The nearest is {nearest} (pip install timm). {remedy}")
    _, difference = _fitted(nearest, shapes)
    return MintError(f"{path} fits no builder. The nearest is {nearest}: {difference}. {remedy}")


def _fitted(name: str, shapes: Shapes) -> tuple[Builder, str | None]:
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


def _recognised(module: nn.Module) -> Builder | None:
    """The known builder that makes just this module, layer for layer, or None."""
    shapes = shapes_of(module)
    for name in fingerprints.candidates(shapes):
        if not is_known(name):
            continue
        builder, difference = _fitted(name, shapes)
        if difference:
            continue
        if name in TRANSFORMS_INPUT and getattr(module, "transform_input", False) is True:
            builder.kwargs["transform_input"] = True
        if _alike(build(builder), module):
            return builder
    return None


def _alike(made: nn.Module, module: nn.Module) -> bool:
    """Whether two modules of the same keys also have the same layers, strides, modes, activations."""
    # the printed form shows most settings, the plain attributes show the others
    return repr(made) == repr(module) and all(
        type(one) is type(other) and _settings(one) == _settings(other)
        for one, other in zip(made.modules(), module.modules(), strict=True)
    )


def _settings(layer: nn.Module) -> dict[str, Any]:
    noted = ("training", "mint_builder", "mint_input_shape")
    plain = {k: v for k, v in vars(layer).items() if isinstance(v, bool | int | float | str | tuple)}
    return {k: repr(v) for k, v in plain.items() if k not in noted}
