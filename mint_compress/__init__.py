"""Smaller, faster PyTorch networks: structured pruning by conditional mutual information.

``import mint_compress`` is light: PyTorch is imported when the first public name is used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint_compress.checkpoints.loading import load, load_model
    from mint_compress.checkpoints.saving import save
    from mint_compress.compression import compress
    from mint_compress.data.data import Data
    from mint_compress.data.specs import load_data
    from mint_compress.errors import CheckFailed, MintError
    from mint_compress.exporting.benchmarking import benchmark
    from mint_compress.exporting.protocol import export
    from mint_compress.exporting.receipt import Receipt, verify
    from mint_compress.graph.finding import find_groups
    from mint_compress.graph.groups import ChannelGroup
    from mint_compress.importance import MutualInformationImportance
    from mint_compress.inspecting import Inspection, inspect_model
    from mint_compress.nn.attention.separating import separate_attention_
    from mint_compress.planning.search import plan
    from mint_compress.repair.compensation import compensate_
    from mint_compress.reporting import Report
    from mint_compress.scoring.calibration import Calibration, calibrate
    from mint_compress.scoring.scores import ChannelScores, score
    from mint_compress.settings import Budget, Settings
    from mint_compress.surgery.pruning import prune_
    from mint_compress.surgery.pruning_plan import PruningPlan
    from mint_compress.sweeping import sweep
    from mint_compress.training.evaluation import accuracy, evaluate
    from mint_compress.training.finetuning import finetune_
    from mint_compress.training.healing import heal_
    from mint_compress.training.tasks.protocol import Task

__version__ = "0.2.0"

_HOMES = {
    "Budget": "settings",
    "Calibration": "scoring.calibration",
    "ChannelGroup": "graph.groups",
    "ChannelScores": "scoring.scores",
    "CheckFailed": "errors",
    "Data": "data.data",
    "Settings": "settings",
    "Inspection": "inspecting",
    "MintError": "errors",
    "MutualInformationImportance": "importance",
    "PruningPlan": "surgery.pruning_plan",
    "Receipt": "exporting.receipt",
    "Report": "reporting",
    "Task": "training.tasks.protocol",
    "accuracy": "training.evaluation",
    "benchmark": "exporting.benchmarking",
    "calibrate": "scoring.calibration",
    "compensate_": "repair.compensation",
    "compress": "compression",
    "evaluate": "training.evaluation",
    "export": "exporting.protocol",
    "find_groups": "graph.finding",
    "finetune_": "training.finetuning",
    "heal_": "training.healing",
    "inspect_model": "inspecting",
    "load": "checkpoints.loading",
    "load_data": "data.specs",
    "load_model": "checkpoints.loading",
    "plan": "planning.search",
    "prune_": "surgery.pruning",
    "save": "checkpoints.saving",
    "score": "scoring.scores",
    "separate_attention_": "nn.attention.separating",
    "sweep": "sweeping",
    "verify": "exporting.receipt",
    "verify_export": "verifying",
}

__all__ = [
    "Budget",
    "Calibration",
    "ChannelGroup",
    "ChannelScores",
    "CheckFailed",
    "Data",
    "Inspection",
    "MintError",
    "MutualInformationImportance",
    "PruningPlan",
    "Receipt",
    "Report",
    "Settings",
    "Task",
    "accuracy",
    "benchmark",
    "calibrate",
    "compensate_",
    "compress",
    "evaluate",
    "export",
    "find_groups",
    "finetune_",
    "heal_",
    "inspect_model",
    "load",
    "load_data",
    "load_model",
    "plan",
    "prune_",
    "save",
    "score",
    "separate_attention_",
    "sweep",
    "verify",
    "verify_export",
]

_RENAMED = {"finetune": "finetune_"}
"""Former names, which still work and say what they are called now."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        now = _RENAMED[name]
        warnings.warn(f"{__name__}.{name} is now called {now}", DeprecationWarning, stacklevel=2)
        return __getattr__(now)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
