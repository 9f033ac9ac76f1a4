"""The loss: cross-entropy, and how far a student is from its teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mint_compress.data.label_maps import NO_CLASS, with_class


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    taught: Tensor | None,
    *,
    smoothing: float,
    temperature: float,
    weight: float,
) -> Tensor:
    """Cross-entropy with label smoothing, mixed with the divergence from a teacher's logits.

    Parameters
    ----------
    logits, taught
        (n, classes, ...) of student and teacher; None without a teacher.
    labels
        (n, ...) int64; pixels of label maps (n, H, W) that are -100 have no class and are left out of
        both parts.
    smoothing, temperature, weight
        (1 - weight) * cross-entropy + weight * temperature² * KL(teacher || student), both softened
        by the temperature; the square keeps the gradients' size independent of it.

    Returns
    -------
    Tensor
        A scalar in float32, the mean over the labels, in nats; 0 where none has a class.
    """
    logits = logits.float()
    kept = with_class(labels) if labels.ndim > 1 else None
    if kept is not None and not kept.any():
        return logits.sum() * 0
    loss = functional.cross_entropy(logits, labels, ignore_index=NO_CLASS, label_smoothing=smoothing)
    if taught is None:
        return loss
    student = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(taught.float() / temperature, 1)
    divergence = functional.kl_div(student, target, log_target=True, reduction="none").sum(1)
    if kept is not None:
        divergence = divergence[kept]
    return (1 - weight) * loss + weight * temperature**2 * divergence.mean()
