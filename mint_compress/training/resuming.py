"""The state of a training in a file, from which one that was interrupted goes on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mint_compress.errors import MintError
from mint_compress.files import replacing
from mint_compress.reporting.records import Metric
from mint_compress.training.epochs import EpochResult
from mint_compress.training.hyperparameters import Hyperparameters

KEYS = {"settings", "model", "optimizer", "scaler", "order", "random", "cuda", "step", "results"}


@dataclass(frozen=True)
class Resumable:
    """All that changes in the course of a training.

    Attributes
    ----------
    scaler
        Of the loss in half precision, where that is computed in.
    generators
        Draw the order of the images and the augmentation; what else is drawn comes from PyTorch's own.
    """

    hyperparameters: Hyperparameters
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    generators: Sequence[torch.Generator]
    device: torch.device

    def keep(self, path: Path, step: int, results: list[EpochResult]) -> None:
        """Write the state after ``step`` batches, and what the epochs so far came to."""
        state = {
            "settings": asdict(self.hyperparameters),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "order": [one.get_state() for one in self.generators],
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "step": step,
            "results": [asdict(result) for result in results],
        }
        content = io.BytesIO()
        torch.save(state, content)  # which says of a disk that is full only that something failed
        with replacing(path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def resume(self, path: Path) -> tuple[int, list[EpochResult]]:
        """Take over the state that :meth:`keep` wrote; return the step and the results kept with it.

        Raises
        ------
        MintError
            The file is of something else.
        """
        state = _read(path, self.device)
        if state["settings"] != asdict(self.hyperparameters):
            raise MintError(f"{path} is of a training with other settings. Delete it to begin anew.")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:  # PyTorch's word for other keys or shapes
            raise MintError(f"{path} is of another network. Delete it to begin anew.") from error
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for generator, order in zip(self.generators, state["order"], strict=True):
            generator.set_state(order.cpu())
        torch.set_rng_state(state["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
        return state["step"], [_result(**kept) for kept in state["results"]]


def _result(metric: dict[str, Any], **rest: Any) -> EpochResult:
    return EpochResult(metric=Metric(**metric), **rest)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    no_state = MintError(f"{path} is no state of a training. Delete it to begin anew.")
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch reads weights with a wrong byte as well
            if archive.testzip() is not None:
                raise no_state
        state = torch.load(path, map_location=device, weights_only=True)
    except MintError:
        raise
    except Exception as error:  # torch.load's: a file that torch did not write can fail in any way
        raise no_state from error
    if not isinstance(state, dict) or state.keys() != KEYS:
        raise no_state
    return state
