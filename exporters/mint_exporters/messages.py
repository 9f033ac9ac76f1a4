"""What other libraries say, fit for one line."""

from __future__ import annotations

import textwrap


def one_line(error: BaseException) -> str:
    """The message on one line, of a readable length, without ONNX Runtime's preamble."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" failed:", 1)[-1]
    return textwrap.shorten(text, 300, placeholder=" …")
