"""What goes wrong, said to a person; and whose fault it is: the user's, other code's, or our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

STRICT = "MINT_COMPRESS_STRICT"
"""The environment variable that lets our own faults come out where they happen."""


class MintError(ValueError):
    """Bad input. The command prints the message on one line and exits with 2."""

    exit_code = 2


class CheckFailed(MintError):
    """A claim the program checks about its own output did not hold (receipt, parity). Exit status 1."""

    exit_code = 1


class ForeignError(MintError):
    """Code that is not ours raised: a network's forward pass, a builder, a loader, a library.

    The original error is the ``__cause__``.
    """


class OwnFault(BaseException):
    """Our own code failed while it ran inside foreign code, as hooks do. The original is the ``__cause__``.

    No ``Exception``: neither a ``try`` in a user's forward pass nor :func:`foreign` may take it for theirs.
    """


class ProcessLost(BaseException):
    """Another of the processes that share a run has failed or is gone: this one cannot go on alone.

    No ``Exception``: nobody may take it for a fault in what was just computed, and go on without it.
    """

    exit_code = 1


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Everything in this block is somebody else's code: what it raises becomes a :class:`ForeignError`.

    Parameters
    ----------
    what
        Whose code it is, as the start of a sentence: ``The network's forward pass``.
    """
    try:
        yield
    except MintError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        raise ForeignError(f"{what} failed: {first_line(error)}") from error


@contextmanager
def our_own() -> Iterator[None]:
    """Our code inside foreign code, such as a hook: what it raises becomes an :class:`OwnFault`."""
    try:
        yield
    except MintError:
        raise
    except Exception as error:  # lest it be blamed on the code around it
        raise OwnFault(first_line(error)) from error


def is_strict() -> bool:
    """Whether our own faults come out where they happen, in the place of a way around them.

    Set ``MINT_COMPRESS_STRICT=1`` for that, as the tests do.
    """
    return os.environ.get(STRICT, "") not in ("", "0")


def first_line(error: BaseException) -> str:
    """What any exception says, in one line: its type and the start of its message.

    A :class:`ForeignError` and an :class:`OwnFault` say what the original says.
    """
    if isinstance(error, ForeignError | OwnFault) and error.__cause__ is not None:
        return first_line(error.__cause__)
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


def shown(text: object) -> str:
    """What a file says, fit for a message: printable and short."""
    said = "".join(c if c.isprintable() else "?" for c in str(text)[:100])
    return said + ("..." if len(str(text)) > 100 else "")
