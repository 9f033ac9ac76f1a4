"""What goes wrong, said to a person: what was wrong, the value, and the remedy."""


class MintError(Exception):
    """Bad input. The command prints the message on one line and exits with 2."""

    exit_code = 2


class CheckFailed(MintError):
    """A claim the program checks about its own output did not hold (receipt, parity). Exit status 1."""

    exit_code = 1
