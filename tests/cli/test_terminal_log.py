from __future__ import annotations

import pytest

from mint_compress.cli import terminal


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    log = terminal._Log()
    for now, done in ((0.0, 0), (5.0, 10), (31.0, 40), (40.0, 60), (61.0, 75)):  # noqa: B007
        log("repair", done, 80)
    log("accuracy", 1, 0)
    now = 100.0
    log("accuracy", 7, 0)
    said = capsys.readouterr().err.splitlines()
    assert said == ["repair ...", "repair ... 50%", "repair ... 94%", "accuracy ...", "accuracy ... 7"]
