"""Architectures by name: the zoo's, torchvision's, those of an installed timm, and callables of the user."""

from __future__ import annotations

import difflib

from mint_compress import zoo
from mint_compress.errors import MintError

TIERS = ("zoo", "torchvision", "timm")


def known_builders() -> list[str]:
    """Names of the builders that files are recognised as: zoo, torchvision (images), timm if installed."""
    from torchvision import models

    names = [f"zoo:{n}" for n in zoo.BUILDERS]
    for module in (models, models.segmentation, models.detection):
        names += [f"torchvision:{n}" for n in models.list_models(module=module)]
    return names + [f"timm:{n}" for n in _timm_names()]


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


def is_detection(name: str) -> bool:
    """Whether it is one of torchvision's detectors, which take ``num_classes`` with the background."""
    tier, _, leaf = name.partition(":")
    if tier != "torchvision":
        return False
    from torchvision import models

    return leaf in models.list_models(module=models.detection)


def classes_by_default(name: str) -> int:
    """How many classes a detector of torchvision has unless it is told otherwise: those of its weights."""
    from torchvision import models

    weights = models.get_model_weights(name.partition(":")[2])
    return len(next(iter(weights)).meta["categories"])


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

    if is_detection(name):
        made = models.get_model(leaf, weights=None, weights_backbone=None)
        return (3, *(made.transform.min_size[-1],) * 2)
    presets = [weights.transforms() for weights in models.get_model_weights(leaf)]
    # weights trained at a larger size came later; the builder's default is the smallest
    sizes = [p.crop_size[0] if hasattr(p, "crop_size") else p.resize_size[0] for p in presets]
    return (3, *(min(sizes),) * 2)
