"""What other libraries say, fit for one line."""

from __future__ import annotations

import re
import textwrap

_MEANT_FOR_DEVELOPERS = re.compile(
    r"\s*(Caused by:|User stack|Stack trace|The following call raised|For more (information|debugging)).*",
    re.DOTALL | re.IGNORECASE,
)
_PLACE = re.compile(
    r"""\s*\(?(File )?["']?[^\s"'()]+\.(py|cc|cpp|h)["']?(:\d+|, line \d+)(:\d+)?(,? in \w+)?\)?"""
)


def one_line(error: BaseException) -> str:
    """The message on one line, of a readable length, without ONNX Runtime's preamble."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" failed:", 1)[-1]
    return textwrap.shorten(text, 300, placeholder=" …")


def of_pytorch(error: BaseException) -> str:
    """The message on one line, without stack traces and places in source files, and without its full stop."""
    said = str(error)
    said = _MEANT_FOR_DEVELOPERS.sub("", said) or said
    return one_line(Exception(_PLACE.sub("", said))).rstrip(". ")
