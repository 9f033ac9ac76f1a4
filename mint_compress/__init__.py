"""Smaller, faster PyTorch networks: structured pruning by conditional mutual information.

``import mint_compress`` is light: PyTorch is imported when the first public name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint_compress.benchmarking import benchmark
    from mint_compress.calibration import Calibration, calibrate
    from mint_compress.channels import ChannelGroup
    from mint_compress.checkpoints import save
    from mint_compress.compensation import compensate_
    from mint_compress.compression import compress
    from mint_compress.data import Data, load_data
    from mint_compress.errors import CheckFailed, MintError
    from mint_compress.evaluation import accuracy
    from mint_compress.exporting import export
    from mint_compress.finetuning import finetune
    from mint_compress.groups import find_groups
    from mint_compress.importance import MutualInformationImportance
    from mint_compress.inspecting import Inspection, inspect_model
    from mint_compress.models import load, load_model
    from mint_compress.planning import Budget, plan
    from mint_compress.plans import PruningPlan
    from mint_compress.pruning import prune_
    from mint_compress.reporting import Report
    from mint_compress.scoring import ChannelScores, score
    from mint_compress.sweeping import Grid, sweep
    from mint_compress.verification import Receipt, verify

__version__ = "0.1.0"

_HOMES = {
    "Budget": "planning",
    "Calibration": "calibration",
    "ChannelGroup": "channels",
    "ChannelScores": "scoring",
    "CheckFailed": "errors",
    "Data": "data",
    "Grid": "sweeping",
    "Inspection": "inspecting",
    "MintError": "errors",
    "MutualInformationImportance": "importance",
    "PruningPlan": "plans",
    "Receipt": "verification",
    "Report": "reporting",
    "accuracy": "evaluation",
    "benchmark": "benchmarking",
    "calibrate": "calibration",
    "compensate_": "compensation",
    "compress": "compression",
    "export": "exporting",
    "find_groups": "groups",
    "finetune": "finetuning",
    "inspect_model": "inspecting",
    "load": "models",
    "load_data": "data",
    "load_model": "models",
    "plan": "planning",
    "prune_": "pruning",
    "save": "checkpoints",
    "score": "scoring",
    "sweep": "sweeping",
    "verify": "verification",
}

__all__ = [
    "Budget",
    "Calibration",
    "ChannelGroup",
    "ChannelScores",
    "CheckFailed",
    "Data",
    "Grid",
    "Inspection",
    "MintError",
    "MutualInformationImportance",
    "PruningPlan",
    "Receipt",
    "Report",
    "accuracy",
    "benchmark",
    "calibrate",
    "compensate_",
    "compress",
    "export",
    "find_groups",
    "finetune",
    "inspect_model",
    "load",
    "load_data",
    "load_model",
    "plan",
    "prune_",
    "save",
    "score",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
