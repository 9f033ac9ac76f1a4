"""The sizes of a module's layers as plain data, so that a pruned module can be rebuilt without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mint_compress.errors import MintError, shown
from mint_compress.nn.layers import CONVOLUTIONS, OVER_CHANNELS
from mint_compress.nn.recurrent import RECURRENT

LARGEST = 2**31
SET = "mint_sizes"
"""The attribute of a module that names those of its sizes that were set with a plan."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# by isinstance: torchvision and timm derive their own layers from these
SIZES: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    (CONVOLUTIONS, ("in_channels", "out_channels", "groups")),
    ((nn.Linear,), ("in_features", "out_features")),
    ((*BATCH_NORMS, *INSTANCE_NORMS), ("num_features",)),
    ((nn.GroupNorm,), ("num_groups", "num_channels")),
    (OVER_CHANNELS, ("normalized_shape",)),
    ((nn.PReLU,), ("num_parameters",)),
    (RECURRENT, ("input_size",)),
    ((nn.Embedding,), ("num_embeddings", "embedding_dim")),
    ((nn.MultiheadAttention,), ("embed_dim", "kdim", "vdim", "num_heads", "head_dim")),
)

# attributes that a forward pass reads, of classes that are not imported for this: (package, class)
ADAPTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("torchvision", "VisionTransformer"): ("hidden_dim",),
    **{
        ("timm", name): ("num_heads", "head_dim", "attn_dim", "scale")
        for name in ("Attention", "AttentionRope", "EvaAttention")
    },
    ("timm", "WindowAttention"): ("num_heads",),
}


def size_attributes(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes of one layer that pruning changes and a rebuilt layer must be given."""
    names: tuple[str, ...] = ()
    for classes, attributes in SIZES:
        if isinstance(module, classes):
            names += attributes
    for base in type(module).__mro__:
        names += ADAPTED.get((base.__module__.partition(".")[0], base.__name__), ())
    return (*names, *(name for name in vars(module).get(SET, ()) if name not in names))


def may_shrink(module: nn.Module, attribute: str, value: Any) -> bool:
    """Whether a module keeps a whole number, or several, of which ``value`` is a smaller one, or as many.

    Not a layer, whose sizes are all known: what else it keeps (a stride) is none.
    """
    now = vars(module).get(attribute)
    if any(isinstance(module, classes) for classes, _ in SIZES):
        return False
    if isinstance(now, tuple | list):
        fits = isinstance(value, tuple | list) and len(value) == len(now)
        return fits and all(_is_smaller(v, n) for v, n in zip(value, now, strict=True))
    return not attribute.startswith("_") and _is_smaller(value, now)


def _is_smaller(value: Any, now: Any) -> bool:
    return type(value) is int and type(now) is int and 0 < value <= now


def set_sizes_(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set numbers that modules keep, module -> attribute -> value, and note on each module which.

    The note is what :func:`size_attributes` reads, so that a saved file carries them.
    """
    for name, own in sizes.items():
        module = model.get_submodule(name)
        for attribute, value in own.items():
            kind = type(vars(module)[attribute])
            vars(module)[attribute] = kind(value)
        vars(module)[SET] = sorted({*vars(module).get(SET, ()), *own})


def shape_spec(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name -> {attribute: size}; sizes are numbers or lists of numbers, ready for JSON."""
    spec: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        sizes = {a: getattr(module, a) for a in size_attributes(module) if hasattr(module, a)}
        if sizes:
            spec[name] = {a: list(v) if isinstance(v, tuple) else v for a, v in sizes.items()}
    return spec


def set_shapes_(model: nn.Module, spec: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the layers of ``model`` the sizes in ``spec``; their tensors are not touched.

    Raises
    ------
    MintError
        ``spec`` names a module that ``model`` does not have, or anything but sizes.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, sizes in spec.items():
        if name not in modules:
            raise MintError(f"The file was saved from another architecture: it has a layer {shown(name)!r}.")
        module = modules[name]
        allowed = size_attributes(module)
        for attribute, value in sizes.items():
            # the spec is read from a file: only sizes may be set through it
            if attribute in allowed and _is_size(value, getattr(module, attribute, None)):
                setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
            elif may_shrink(module, attribute, value):
                set_sizes_(model, {name: {attribute: value}})
            else:
                what = f"{name}.{shown(attribute)} to {shown(repr(value))}"
                raise MintError(f"The file sets {what}, which is not a size of it.")


def _is_size(value: Any, old: Any) -> bool:
    """Whether a value from a file can stand where ``old`` does: as many numbers, fractions for fractions."""
    if isinstance(old, tuple):
        return isinstance(value, list) and len(value) == len(old) and all(_is_number(v, 0) for v in value)
    return value is None or _is_number(value, old)


def _is_number(value: Any, old: Any) -> bool:
    fits = type(value) is int or (type(value) is float and not isinstance(old, int))
    return fits and 0 < value < LARGEST


def set_tensors_(model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
    """Replace parameters and buffers by new ones that hold ``tensors``, of whatever shape.

    Parameters
    ----------
    model
        Changed in place. Parameters that are one object under two names stay one object.
    tensors
        One entry for every key of the model's state_dict, except for the keys in ``ties``.
        ``num_batches_tracked`` may be missing, as in files from before PyTorch 0.4.1.
    ties
        Key -> key of the parameter that it shares.

    Raises
    ------
    MintError
        A key is missing or unknown, or a tensor is of another kind than the one that it replaces:
        whole numbers for fractions, more or fewer dimensions, another kernel size.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    # held here to the end, so that no new tensor can be given the id of an old one
    own = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    strange = [k for k in own if k.rpartition(".")[0] not in modules]
    if strange:
        raise MintError(f"The architecture has a tensor {strange[0]!r}, which is in none of its layers.")
    unknown = [k for k in (*tensors, *ties, *ties.values()) if k not in own]
    if unknown:
        raise MintError(
            f"The file was saved from another architecture: it has a tensor {shown(unknown[0])!r}."
        )
    new: dict[int, Tensor] = {}
    placed: dict[str, Tensor] = {}
    for key, old in own.items():
        if key in ties:
            continue
        if key in tensors:
            kernel = isinstance(modules[key.rpartition(".")[0]], CONVOLUTIONS)
            placed[key] = new.setdefault(id(old), _like(old, tensors[key], key, kernel=kernel))
            _put(modules, key, placed[key])
        elif not key.endswith("num_batches_tracked"):
            raise MintError(f"The file has no tensor {key!r}, which the architecture needs.")
    for key, other in ties.items():
        if other not in placed:
            raise MintError(f"The file has no tensor {other!r}, which {key!r} shares.")
        _put(modules, key, placed[other])


def _like(old: Tensor, tensor: Tensor, key: str, *, kernel: bool) -> Tensor:
    if key.endswith("num_batches_tracked"):
        # some averaging code makes fractions of it
        tensor = tensor.to(old.dtype)
    if old.is_floating_point() != tensor.is_floating_point():
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, old)]
        raise MintError(f"{key!r} holds {kinds[0]} numbers in the file and {kinds[1]} in the architecture.")
    # pruning makes channels fewer, which are the first two dimensions of a kernel
    if old.ndim != tensor.ndim or (kernel and old.shape[2:] != tensor.shape[2:]):
        shapes = [tuple(t.shape) for t in (tensor, old)]
        raise MintError(f"{key!r} is {shapes[0]} in the file and {shapes[1]} in the unpruned architecture.")
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    return tensor


def _put(modules: Mapping[str, nn.Module], key: str, tensor: Tensor) -> None:
    parent, _, leaf = key.rpartition(".")
    slots = modules[parent]._parameters if isinstance(tensor, nn.Parameter) else modules[parent]._buffers
    slots[leaf] = tensor  # type: ignore[index,assignment]
