"""Times of layers that were measured on this machine, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import Exporter
from mint_compress.files import replacing
from mint_compress.settings import Benchmark

log = logging.getLogger(__name__)
Width = TypeVar("Width")


@dataclass
class KeptTimes:
    """Milliseconds by what was timed, in a file for each machine, runtime, and way to run it."""

    path: Path
    ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, exporter: Exporter, how: Benchmark) -> KeptTimes:
        """What is kept of an exporter's runtime here; nothing where the file is not there, or is damaged."""
        runtime = getattr(exporter, "runtime", exporter.name)
        who = f"{_processor()}, {os.cpu_count()} cores, {runtime} on {how.provider}, {how.threads} threads"
        path = _folder() / f"{hashlib.sha256(who.encode()).hexdigest()[:16]}.json"
        try:
            held = json.loads(path.read_text(encoding="utf-8"))["ms"]
        except (OSError, ValueError, KeyError, TypeError):
            held = {}
        return cls(path, {name: float(ms) for name, ms in held.items() if isinstance(ms, int | float)})

    def once(self, what: str, measure: Callable[[Width], float], width: Width) -> float:
        """As it was measured before, or else now."""
        if what not in self.ms:
            self.ms[what] = measure(width)
        return self.ms[what]

    def write(self) -> None:
        """Keep everything; where that cannot be, the next run measures again."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"ms": self.ms}, indent=0), encoding="utf-8")
        except (OSError, MintError) as error:
            log.debug("times of layers are not kept: %s", error)


def _folder() -> Path:
    """In the cache of the user, where the system's convention has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mint-compress" / "latency"


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
