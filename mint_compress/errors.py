"""What goes wrong, said to a person: what was wrong, the value, and the remedy."""


class MintError(Exception):
    """Bad input. The command prints the message on one line and exits with 2."""

    exit_code = 2


class CheckFailed(MintError):
    """A claim the program checks about its own output did not hold (receipt, parity). Exit status 1."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What any exception says, in one line: its type and the start of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")


def shown(text: object) -> str:
    """What a file says, fit for a message: printable and short."""
    said = "".join(c if c.isprintable() else "?" for c in str(text)[:100])
    return said + ("..." if len(str(text)) > 100 else "")
