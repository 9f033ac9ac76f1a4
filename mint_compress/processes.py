"""The processes that share one run: who is who, what each takes, and what they add up."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mint_compress.errors import ProcessLost

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")

PATIENCE = timedelta(hours=12)
"""How long a process waits for another, which may score or time: one that dies is noticed at once."""
RANKS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
"""Environment variables that say which process this is, and of how many: torchrun's, Open MPI's, MPICH's."""
LOST = "Another process of this run failed or was ended, and this one cannot go on without it."

_sharing = False
_store: Any = None


def launched() -> tuple[int, int]:
    """The number of this process, and how many were launched to share the run; (0, 1) for one alone.

    From the environment, as torchrun, ``accelerate launch`` and mpirun leave it; needs no torch.
    """
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        for number, count in RANKS:
            with suppress(KeyError, ValueError):
                return int(os.environ[number]), int(os.environ[count])
    return 0, 1


def is_launch_of_one() -> bool:
    """Whether ``accelerate launch`` was asked for several processes and started one, as with ``--cpu``."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and launched()[1] == 1


@contextmanager
def sharing() -> Iterator[None]:
    """While the block lasts, the processes that were launched together share the work.

    All of them must enter it, and call the same stages in the same order. One process alone computes as if
    it had not. The functions below see one process outside of such a block.
    """
    global _sharing
    before = _sharing
    _sharing = before or _joined()
    try:
        yield
    finally:
        _sharing = before


def _joined() -> bool:
    """Whether this process is in a group of several, which is made if they were launched for one."""
    global _store
    from torch import cuda, distributed

    if not distributed.is_available():
        return False
    if not distributed.is_initialized():
        rank, count = launched()
        if count < 2:
            return False
        from torch.distributed.rendezvous import rendezvous

        # NCCL takes one process a GPU; gloo takes all, and by default tensors on the CPU
        enough = cuda.is_available() and cuda.device_count() >= _local_count(count)
        if enough:
            cuda.set_device(local_rank())
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count))
        with _noticing():
            _store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
            distributed.init_process_group(
                None if enough else "gloo", store=_store, rank=rank, world_size=count, timeout=PATIENCE
            )
        atexit.register(leave)
    return distributed.get_world_size() > 1


def _local_count(count: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", count))


def local_rank() -> int:
    """The number of this process among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", launched()[0]))


def leave() -> None:
    """Leave the group that :func:`sharing` made: whoever waits for this process then notices."""
    global _store, _sharing
    from torch import distributed

    if _store is not None and distributed.is_initialized():
        with suppress(RuntimeError):  # of a group that has fallen apart already
            distributed.destroy_process_group()
    _store, _sharing = None, False


def first_to_say() -> bool | None:
    """Whether no other process has said yet why the run fails; None where that cannot be known."""
    if _store is None:
        return None
    try:
        return bool(_store.add("mint_compress.failed", 1) == 1)
    except RuntimeError:  # the store went with the process that held it
        return None


def rank() -> int:
    """The number of this process among those that share the work, from 0."""
    if not _sharing:
        return 0
    from torch import distributed

    return distributed.get_rank()


def world() -> int:
    """How many processes share the work."""
    if not _sharing:
        return 1
    from torch import distributed

    return distributed.get_world_size()


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def is_mine(number: int) -> bool:
    """Whether this process takes the piece of work of that number."""
    return number % world() == rank()


@dataclass(frozen=True)
class Share:
    """What one process takes of a batch.

    Attributes
    ----------
    rank, world
        Which process it is, and of how many.
    least
        Samples that each must get; of a smaller batch nobody takes any.
    """

    rank: int
    world: int
    least: int = 1

    def of(self, size: int) -> range:
        """The samples of a batch of ``size`` that are this process's."""
        return range(self.rank, size if size >= self.least * self.world else 0, self.world)


def share(least: int = 0) -> Share | None:
    """What this process takes of each batch; None: everything."""
    return Share(rank(), world(), least) if world() > 1 else None


def gathered(value: T) -> list[T]:
    """What every process gives here, in their order; anything that can be pickled, without GPU tensors."""
    if world() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * world()
    with _noticing():
        distributed.all_gather_object(found, value)
    return found


def by_main(make: Callable[[], T]) -> T:
    """What ``make`` gives in the main process, in every process; the others do not call it.

    It must be something that can be pickled, without GPU tensors.
    """
    if world() == 1:
        return make()
    from torch import distributed

    found: list[Any] = [make() if is_main() else None]
    with _noticing():
        distributed.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result


def done_by_main(function: Callable[P, T]) -> Callable[P, T]:
    """A function that the main process alone goes through, and whose result all get; see :func:`by_main`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return by_main(lambda: function(*args, **kwargs))

    return call


def sum_(tensor: Tensor) -> Tensor:
    """Add up, in place, what all processes have; of the same shape, type and kind of device in all."""
    if world() > 1:
        from torch import distributed

        with _noticing():
            distributed.all_reduce(tensor)
    return tensor


def summed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes by name; where a process lacks a name, it counts as zeros.

    What is given may be changed.
    """
    if world() == 1:
        return dict(tensors)
    import torch

    kinds: dict[str, tuple[Any, torch.dtype, str]] = {}
    for each in gathered({n: (tuple(t.shape), t.dtype, t.device.type) for n, t in tensors.items()}):
        kinds.update(each)
    found = {}
    for name, (shape, dtype, device) in kinds.items():  # in the same order everywhere
        own = tensors.get(name)
        found[name] = sum_(
            torch.zeros(shape, dtype=dtype, device=device) if own is None else own.contiguous()
        )
    return found


def same_everywhere_(*generators: torch.Generator) -> None:
    """Let these draw in every process what they draw in the main one."""
    if world() > 1:
        for generator, state in zip(
            generators, by_main(lambda: [g.get_state() for g in generators]), strict=True
        ):
            generator.set_state(state)


@contextmanager
def _noticing() -> Iterator[None]:
    """What PyTorch raises when the other end of a connection is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(LOST) from error
