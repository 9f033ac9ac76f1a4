"""What is said of a file that cannot be read, whatever the library that read it had to say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint_compress.errors import MintError

log = logging.getLogger(__name__)

SAVE_WEIGHTS = "torch.save(model.state_dict(), 'weights.pt')"


def damaged(path: Path, reason: str = "truncated or damaged") -> MintError:
    """The error for a file that is not what it once was."""
    return MintError(f"{path} cannot be read: it is {reason}. Download or save it again.")


@contextmanager
def reading(path: Path, *raised: type[Exception]) -> Iterator[None]:
    """A library reads ``path`` in this block, and nothing else happens in it.

    Parameters
    ----------
    path
        What is read.
    raised
        What that library is known to raise at a broken file.
    """
    try:
        yield
    except raised as error:
        # the library's own words mean little to whoever gave the file
        log.debug("%s: %s", path, error)
        raise damaged(path) from None
