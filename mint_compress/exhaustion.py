"""What the machine has run out of, memory, disk or a worker, said with the option that needs less of it."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mint_compress.errors import MintError

MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|Failed to allocate")
"""What PyTorch, cuBLAS and ONNX Runtime say, on a GPU and on the CPU."""
WORKER = "DataLoader worker (pid"
FULL = (errno.ENOSPC, errno.EDQUOT)

IMAGES = "fewer --calibration-images"
STAGES = {
    "training.finetuning": ("fine-tuning", "a smaller --batch-size", "--device cpu"),
    "training.healing": ("healing", f"{IMAGES}, or --heal-epochs 0", "--device cpu"),
    "training": ("measuring", "", "--device cpu"),
    "repair": ("the repair", IMAGES, "--device cpu"),
    "scoring": ("scoring", f"{IMAGES} (to gmi, mint and knn: --samples-per-class)", "--device cpu"),
    "data": ("drawing calibration images", IMAGES, "--device cpu"),
    "exporting.benchmarking": ("the benchmark", "a smaller --bench-batch", "--provider cpu"),
    "exporting": ("the checks of the export", "", "--provider cpu"),
}
"""Room, or one of its files -> what goes on there, the option that needs less, and the one that leaves a GPU;
files before their rooms."""


@contextmanager
def exhaustion_told() -> Iterator[None]:
    """Say in one line what there was too little of; every other error goes on as it is.

    Raises
    ------
    MintError
        In the place of an error of PyTorch, ONNX Runtime or the system that says so, whatever else was
        made of it on its way up.
    """
    try:
        yield
    except BaseException as error:  # faults of our own in hooks are no Exception
        said = next(filter(None, (_told(cause, error) for cause in _causes(error))), None)
        if said is None:
            raise
        told = MintError(said)
        for note in getattr(error, "__notes__", ()):  # that --resume can go on from there
            told.add_note(note)
        raise told from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _told(cause: BaseException, error: BaseException) -> str | None:
    """A line for a person, if that is what the cause of an error says."""
    text = " ".join(str(cause).split())
    if isinstance(cause, MintError):
        return None
    if isinstance(cause, MemoryError) or MEMORY.search(text):
        return _of_memory(text, error)
    if isinstance(cause, RuntimeError) and WORKER in text:
        return (
            f"A process that loads data died ({text[:100]}): mostly the machine's memory or its shared "
            "memory is full. Give a smaller --workers, or a loader of your own a smaller num_workers."
        )
    if isinstance(cause, OSError) and cause.errno in FULL:
        where = f" ({cause.filename})" if cause.filename else ""
        return f"The disk is full{where}. Free some space, or choose another folder for -o, or for TMPDIR."
    return None


def _of_memory(text: str, error: BaseException) -> str:
    on_gpu = "CUDA" in text or "CUBLAS" in text
    wanted = re.search(r"(?i)tried to allocate ([\d.]+ \w+)", text)
    amount = f" ({wanted[1]} more were asked for)" if wanted else ""
    stage, less, elsewhere = _stage(error)
    remedies = [less, elsewhere if on_gpu else ""]
    remedy = ", or ".join(filter(None, remedies)) or "it a machine with more memory"
    return f"Out of memory on {'the GPU' if on_gpu else 'the CPU'} in {stage}{amount}. Give {remedy}."


def _stage(error: BaseException) -> tuple[str, str, str]:
    """Of the first of our functions on the way to the error that belongs to one."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        room = str(frame.f_globals.get("__name__")).removeprefix("mint_compress.")
        for place, stage in STAGES.items():
            if room == place or room.startswith(f"{place}."):
                return stage
    return "the analysis", "", "--device cpu"
