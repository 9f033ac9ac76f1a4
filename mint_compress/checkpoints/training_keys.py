"""What the names in a file say: an average of weights, or a tensor that training or profiling left there."""

from __future__ import annotations

import re

AVERAGED = frozenset(("ema", "swa", "averaged", "average", "avg", "shadow", "teacher", "momentum", "target"))
"""Words in the name of a set of weights that is made of another one, or teaches it."""

TRAINING = frozenset(
    (
        *("loss", "losses", "criterion", "criteria", "metric", "metrics", "acc", "accuracy", "confmat"),
        *("auroc", "f1", "iou", "miou", "train", "val", "valid", "test", "optimizer", "scheduler"),
    )
)
"""Words in the names of modules that training scripts keep beside the network."""

PROFILED = ("total_ops", "total_params")
"""What thop leaves in every layer."""

# train_loss1, trainLoss
WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*")


def is_averaged(name: str) -> bool:
    """Whether a set of weights is called an average of others."""
    return bool(AVERAGED & _words(name))


def is_training(key: str) -> bool:
    """Whether a key names something that only training or profiling needs: a loss, a metric, an average."""
    return key.endswith(PROFILED) or bool((AVERAGED | TRAINING) & _words(key))


def _words(name: str) -> set[str]:
    words = {word.lower() for word in WORD.findall(name)}
    return words | {word.rstrip("0123456789") for word in words}
