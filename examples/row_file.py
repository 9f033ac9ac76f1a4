"""Rows of results in one JSON file, and the circumstances that each was made in.

Every row is written as soon as it is known, and a row that is there is not computed again, so a run can
be killed at any point and started again.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

MAIN = int(os.environ.get("RANK", 0)) == 0
"""Of several processes that train together, one writes and speaks."""


class RowFile:
    """Rows below a header, written anew after each of them."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {**header, "rows": []}
        if path.exists():
            self.content = json.loads(path.read_text())

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.content["rows"])

    def add(self, **row: Any) -> None:
        self.content["rows"].append(row)
        if MAIN:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.path)


def circumstances(device: torch.device) -> dict[str, Any]:
    threads = torch.get_num_threads()
    cpu = f"{platform.machine()} CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
        cpu += ", bf16"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": {name: version(name) for name in ("torch", "torch-pruning", "mint-compress")},
    }
