from __future__ import annotations

import pytest

from mint_compress import progress as module
from mint_compress.progress import StageClock


def test_the_clock_adds_up_the_seconds_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    heard: list[tuple[str, int, int]] = []
    clock = StageClock(lambda *word: heard.append(word))
    # the second of "score" is between two words; "repair" speaks up only when a layer is done
    words = ((11.0, "score", 0, 2), (13.0, "score", 1, 2), (16.0, "score", 2, 2), (20.0, "repair", 1, 2))
    for now, *word in (*words, (21.0, "score", 0, 1), (22.0, "score", 1, 1)):  # noqa: B007
        clock(*word)  # type: ignore[arg-type]
    assert clock.seconds == {"score": 1 + 2 + 3 + 1, "repair": 4 + 1}
    assert heard[:2] == [("score", 0, 2), ("score", 1, 2)] and len(heard) == 6
