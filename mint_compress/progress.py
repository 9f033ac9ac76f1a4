"""What every long stage may report while it works."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) by every long stage; cli.py draws a bar from it."""
