"""What one batch of a loader may be, and how samples become one: inputs, with targets of any kind or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mint_compress.data.targets import Targets, shapes_of
from mint_compress.errors import MintError
from mint_compress.nn.io import Inputs, of_batch, tensors

TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys under which a dict of a batch, as Hugging Face's collators give it, has the targets."""

TAKEN = (
    "Taken are inputs, or (inputs, targets): inputs are a tensor, or a tuple or dict of tensors; or a dict "
    "that has labels, target or y besides; or lists of images and of dicts, as for torchvision's detectors"
)


def understood(batch: Any) -> tuple[Inputs, Targets]:
    """Inputs and targets of a batch; None where it has none.

    Parameters
    ----------
    batch
        A tensor; (inputs,) or (inputs, targets), where inputs are a tensor, a tuple of tensors (by position)
        or a dict of tensors (by name); a dict of tensors, of which :data:`TARGETS` names the targets; lists
        of images (C, H, W) of one size and of as many dicts.

    Raises
    ------
    MintError
        Something else, or parts with other numbers of samples.
    """
    inputs, targets = _parts(batch)
    if not _are_tensors(inputs):
        raise MintError(f"The loader gives {_told(batch)} per batch. {TAKEN}.")
    _check_counts(inputs, targets)
    return inputs, targets


def _parts(batch: Any) -> tuple[Any, Targets]:
    if isinstance(batch, Mapping):
        named = next((key for key in TARGETS if key in batch), None)
        return {key: x for key, x in batch.items() if key != named}, batch.get(named)
    if isinstance(batch, list | tuple) and len(batch) in (1, 2):
        targets = batch[1] if len(batch) == 2 else None
        listed = isinstance(batch[0], list | tuple) and _are_dicts(targets)
        if targets is not None and listed and len(batch[0]) == len(targets):
            return _stacked(batch[0]), targets
        return of_batch(batch), _numbers(targets)
    # three tensors are not three inputs: those come as the first of a pair
    return (batch if isinstance(batch, Tensor) else None), None


def _are_dicts(targets: Any) -> bool:
    return isinstance(targets, list | tuple) and all(isinstance(one, Mapping) for one in targets)


def _stacked(images: Sequence[Any]) -> Any:
    if not images or not all(isinstance(image, Tensor) for image in images):
        return images
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        raise MintError(
            f"The loader gives images of different sizes in one batch, {first} and {second}. "
            "Resize or pad them to one size: the smaller network is exported for that size."
        )
    return torch.stack(tuple(images))


def _numbers(targets: Any) -> Any:
    """A list of plain numbers as a tensor."""
    if isinstance(targets, list | tuple) and targets and all(isinstance(one, Real) for one in targets):
        return torch.tensor(targets)
    return targets


def _are_tensors(inputs: Any) -> bool:
    values = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    if isinstance(values, tuple):
        return len(values) > 0 and all(isinstance(x, Tensor) for x in values)
    return isinstance(values, Tensor)


def _check_counts(inputs: Inputs, targets: Targets) -> None:
    beside: tuple[Any, ...] = ()
    if isinstance(targets, Tensor):
        beside = (targets,)
    elif isinstance(targets, Mapping):
        beside = tuple(x for x in targets.values() if isinstance(x, Tensor))
    every = (*tensors(inputs), *beside)
    samples = {x.shape[:1] for x in every}
    if isinstance(targets, list | tuple):
        samples.add(torch.Size([len(targets)]))
    if len(samples) > 1 or not every[0].ndim:
        shapes = ", ".join(str(tuple(x.shape)) for x in every)
        listed = f" with {shapes_of(targets)}" if isinstance(targets, list | tuple) else ""
        raise MintError(
            f"The loader gives inputs and targets of shapes {shapes}{listed} in one batch. "
            "Each must have as many samples as the others, along its first dimension."
        )


def _told(batch: Any) -> str:
    if not isinstance(batch, list | tuple):
        return shapes_of(batch)
    return f"a {type(batch).__name__} of {len(batch)} ({', '.join(map(shapes_of, batch))[:200]})"


def collated(items: list[Any]) -> Any:
    """One batch of samples: what PyTorch's own function makes of them, or a list where targets are unequal.

    Raises
    ------
    MintError
        The inputs are of other types than tensors and numbers, or of unequal shapes.
    """
    paired = all(isinstance(item, list | tuple) and len(item) == 2 for item in items)
    if paired and (_has_boxes(items[0][1]) or any(item[1] is None for item in items)):
        return _collated([x for x, _ in items]), _listed([target for _, target in items])
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:  # PyTorch's, at items of other types or unequal shapes
        if not paired:
            raise _misfit(error) from None
    return _collated([x for x, _ in items]), _listed([target for _, target in items])


def _has_boxes(target: Any) -> bool:
    return isinstance(target, Mapping) and "boxes" in target


def _listed(targets: list[Any]) -> Any:
    return None if all(target is None for target in targets) else targets


def _collated(inputs: list[Any]) -> Any:
    try:
        return default_collate(inputs)
    except (TypeError, RuntimeError) as error:  # PyTorch's
        raise _misfit(error) from None


def _misfit(error: Exception) -> MintError:
    reason = " ".join(str(error).split())
    return MintError(f"The dataset's items do not make a batch ({reason}). Give (tensor, target).")
