"""What every long stage may report while it works, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) by every long stage; the command draws a bar from it."""


class StageClock:
    """Hands progress on, and adds up the seconds of each stage.

    Attributes
    ----------
    seconds
        Stage -> seconds so far. It goes on to grow.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._stage = ""
        self._since = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Progress of a stage."""
        now = time.perf_counter()
        # a stage that speaks up only when something is done has worked since the last word of another
        worked = self._stage if self._stage and not done else stage
        self.seconds[worked] = self.seconds.get(worked, 0.0) + now - self._since
        self._stage, self._since = stage, now
        if self._progress:
            self._progress(stage, done, total)
