"""What one experiment tries, and how it trains."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Training:
    """Of a base without ``distill_weight``, of a pruned network with it; see ``finetune_``."""

    epochs: int
    lr: float
    batch_size: int = 128
    weight_decay: float = 5e-4
    distill_weight: float = 0.7


@dataclass(frozen=True)
class Experiment:
    """What one of the scripts tries.

    Attributes
    ----------
    dataset
        Name of the torchvision set that is downloaded when no ``--data`` is given.
    prune_inputs
        Layers that may drop input features as well.
    equal_macs
        Whether one threshold is tried with the MACs of the uniform plan as well: in a convolutional network
        plans of the same size differ widely in them.
    bases
        Name of the experiment whose base networks are taken; its own if empty.
    shift, flip
        Augmentation: pixels by which images move, and whether they are mirrored.
    published
        Rows (method, removed, accuracy) from papers, for the table.
    """

    name: str
    title: str
    arch: str
    dataset: str
    ratios: tuple[float, ...]
    seeds: int
    base: Training
    finetuning: Training
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    prune_inputs: tuple[str, ...] = ()
    equal_macs: bool = False
    bases: str = ""
    shift: int = 0
    flip: bool = False
    calibration_images: int = 1024
    published: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)
