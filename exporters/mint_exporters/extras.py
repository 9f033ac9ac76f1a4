"""Packages that come with an extra, and which to install where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from mint_compress.errors import MintError


def require(what: str, extra: str, *packages: str) -> None:
    """Refuse to go on without ``packages``, which the ``extra`` installs.

    Raises
    ------
    MintError
        One of them is not there.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MintError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'mint-compress[{extra}]'."
        )
