"""Architectures by name: the zoo, torchvision, timm, and callables that the user names."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mint_compress import zoo
from mint_compress.checkpoints.builders import Builder
from mint_compress.checkpoints.safe_load import DAMAGED, inside, searching_here
from mint_compress.errors import MintError, first_line
from mint_compress.nn.contexts import seeded

TIERS = ("zoo", "torchvision", "timm")

# a header may ask for these arguments and no others: some (weights, checkpoint_path) open other files
SAFE_SWITCHES = ("aux_logits", "aux_loss", "transform_input")
SAFE_SIZES = {"num_classes": 10**6, "in_chans": 1024, "img_size": 4096, "image_size": 4096, "hidden": 2**16}
MOST_HIDDEN = 64


def safe_argument(name: str, value: Any) -> bool:
    """Whether a file may have a known builder called with this: a switch, or a size within reason."""
    if name in SAFE_SWITCHES:
        return isinstance(value, bool)
    sizes = value if isinstance(value, list) else [value]
    return (
        name in SAFE_SIZES
        and len(sizes) <= MOST_HIDDEN
        and all(type(size) is int and 0 <= size <= SAFE_SIZES[name] for size in sizes)
    )


# torchvision's builders of these fill the weights with scipy, for half a minute
SLOW_INIT = ("googlenet", "inception_v3")

RANDOM = frozenset(
    f"{kind}_"
    for kind in (
        *("uniform", "normal", "trunc_normal", "xavier_uniform", "xavier_normal", "kaiming_uniform"),
        *("kaiming_normal", "orthogonal", "sparse", "erfinv"),
    )
)


class WithoutRandomInit(TorchFunctionMode):
    """Fills parameters with a constant where a constructor would draw random numbers.

    For networks whose every parameter is replaced afterwards; 138 M random numbers take seconds. The
    constant is the mean: initialisers that draw until nothing lies outside an interval end at once, as
    they would not with what happens to be in memory. What is no parameter is drawn, lest such a
    loop's own proposals never be accepted.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor as it is, or call ``func``."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in RANDOM:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        if tensor.is_meta:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return func(*args, **kwargs)
        mean = (args[1] if len(args) > 1 else kwargs.get("mean", 0.0)) if name == "normal_" else 0.0
        tensor.detach().fill_(mean)
        return tensor


def known_builders() -> list[str]:
    """Names of the builders that files are recognised as: zoo, torchvision (images), timm if installed."""
    names = [f"zoo:{n}" for n in zoo.BUILDERS]
    names += [f"torchvision:{n}" for n in (*_torchvision_names(segmentation=False), *_segmentation())]
    return names + [f"timm:{n}" for n in _timm_names()]


def _torchvision_names(*, segmentation: bool) -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models.segmentation if segmentation else models)
    return names


def _segmentation() -> list[str]:
    return _torchvision_names(segmentation=True)


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    names: list[str] = timm.list_models()
    return names


def is_known(name: str) -> bool:
    """Whether ``name`` (with its tier) is a builder of the zoo, torchvision or an installed timm."""
    tier, _, leaf = name.partition(":")
    if tier == "zoo":
        return leaf in zoo.BUILDERS
    if tier == "torchvision":
        from torchvision import models

        return leaf in models.list_models()
    # a tag names weights of the same architecture: resnet50.a1_in1k
    return tier == "timm" and leaf.partition(".")[0] in _timm_names()


def with_tier(name: str) -> str | None:
    """``resnet18`` -> ``torchvision:resnet18``: the first tier that knows a bare name, or None."""
    if ":" in name:
        return name if is_known(name) else None
    return next((f"{tier}:{name}" for tier in TIERS if is_known(f"{tier}:{name}")), None)


def resolve(arch: str) -> str:
    """The full name of what ``--arch`` asks for.

    Raises
    ------
    MintError
        No builder has this name; the message gives the closest ones.
    """
    tier, colon, _ = arch.partition(":")
    if colon and tier not in TIERS:
        return arch
    if tier == "timm" and not _timm_names():
        raise MintError(f"--arch {arch} needs timm: pip install timm")
    for name in (arch,) if colon else (f"zoo:{arch}", f"torchvision:{arch}"):
        if is_known(name):
            return name
    # as --arch wants them: only timm's carry their tier
    spoken = [n if n.startswith("timm:") else n.partition(":")[2] for n in known_builders()]
    close = [n for n in spoken if arch in n][:3] or difflib.get_close_matches(arch, spoken, n=3)
    close = close or list(zoo.BUILDERS)
    raise MintError(
        f"Unknown architecture {arch!r}. Near it: {', '.join(close)}. Or give any torchvision builder, "
        "timm:NAME or package.module:callable."
    )


def permitted(name: str, trust: Iterable[str]) -> bool:
    """Whether a builder named inside a file may be used."""
    module = name.partition(":")[0]
    return is_known(name) if module in TIERS else inside(module, trust)


def build(builder: Builder) -> nn.Module:
    """Make the architecture on the CPU; known ones without random initial weights.

    Raises
    ------
    MintError
        It cannot be imported, or fails when it is called.
    """
    if builder.name.partition(":")[0] not in TIERS:
        return _called(builder)
    try:
        with seeded(0), WithoutRandomInit():
            return _known(builder)
    except MintError:
        raise
    except DAMAGED as error:
        raise _unbuildable(builder, error) from None


def _unbuildable(builder: Builder, error: BaseException) -> MintError:
    given = builder.kwargs or "its defaults"
    return MintError(f"{builder.name} cannot be built with {given}: {first_line(error)}")


def outline(name: str, kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a known architecture's state_dict; no memory is used for its tensors."""
    builder = Builder(name, kwargs)
    try:
        try:
            # also because random numbers on the meta device load a compiler, for seconds
            with seeded(0), torch.device("meta"), WithoutRandomInit():
                module = _known(builder)
        except RuntimeError:
            # torchvision's regnets compute with small tensors while they are built
            with seeded(0), WithoutRandomInit():
                module = _known(builder)
    except MintError:
        raise
    except DAMAGED as error:
        raise _unbuildable(builder, error) from None
    return shapes_of(module)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a module's state_dict."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def _known(builder: Builder) -> nn.Module:
    tier, _, leaf = builder.name.partition(":")
    kwargs = dict(builder.kwargs)
    if tier == "zoo":
        return zoo.BUILDERS[leaf](**kwargs)
    if tier == "timm":
        import timm

        made: nn.Module = timm.create_model(leaf, pretrained=False, **kwargs)
        return made
    from torchvision import models

    make = models.get_model_builder(leaf)
    if "weights_backbone" in inspect.signature(make).parameters:
        # by default torchvision downloads one
        kwargs["weights_backbone"] = None
    if leaf in SLOW_INIT:
        kwargs["init_weights"] = False
    made = make(weights=None, **kwargs)
    return made


def accepts_classes(name: str) -> bool:
    """Whether a callable, or a known builder, takes ``num_classes``."""
    if name.partition(":")[0] in TIERS:
        return True
    try:
        return "num_classes" in inspect.signature(_found(name)).parameters
    except (TypeError, ValueError):
        return False


def _found(spec: str) -> Callable[..., Any]:
    module, _, path = spec.partition(":")
    try:
        with searching_here():
            found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except SystemExit as error:
        raise MintError(f"{spec} cannot be imported: it calls sys.exit({error.code!r}).") from None
    except MintError:
        raise
    except (ImportError, SyntaxError, NameError, *DAMAGED) as error:
        raise MintError(f"{spec} cannot be imported: {first_line(error)}") from None
    if not callable(found) or isinstance(found, nn.Module):
        raise MintError(f"{spec} is a {type(found).__name__}, not a function or class that makes a network.")
    return found  # type: ignore[no-any-return]


def _called(builder: Builder) -> nn.Module:
    make = _found(builder.name)
    try:
        with torch.random.fork_rng(devices=[]):
            made = make(**builder.kwargs)
    except MintError:
        raise
    except (ImportError, NameError, SystemExit, *DAMAGED) as error:
        raise MintError(
            f"{builder.name} failed when it was called with {builder.kwargs or 'no arguments'}: "
            f"{first_line(error)}"
        ) from None
    if not isinstance(made, nn.Module):
        raise MintError(f"{builder.name} returned a {type(made).__name__}, not a torch.nn.Module.")
    return made


def original_input_shape(name: str) -> tuple[int, ...]:
    """The input, without the batch, that a known architecture was made for."""
    tier, _, leaf = name.partition(":")
    if tier == "zoo":
        return zoo.INPUT_SHAPES[leaf]
    if tier == "timm":
        import timm

        config = timm.get_pretrained_cfg(leaf)
        return tuple(getattr(config, "input_size", None) or (3, 224, 224))
    from torchvision import models

    presets = [weights.transforms() for weights in models.get_model_weights(leaf)]
    # weights trained at a larger size came later; the builder's default is the smallest
    sizes = [p.crop_size[0] if hasattr(p, "crop_size") else p.resize_size[0] for p in presets]
    return (3, *(min(sizes),) * 2)
