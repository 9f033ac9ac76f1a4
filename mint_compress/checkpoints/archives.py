"""The zip archive that ``torch.save`` writes, checked from the outside before anything in it is read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from mint_compress.checkpoints.damage import SAVE_WEIGHTS, damaged, reading
from mint_compress.errors import MintError

# zipfile at a broken archive; RuntimeError is for encryption and for methods that it does not know
ZIPFILE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, LookupError, OverflowError, RuntimeError, MemoryError),
)


def check_archive(path: Path) -> dict[str, int]:
    """Member -> bytes; refuses archives that are no weights, that are more than their size, that fail
    their CRC, or that another reader could see in another way.
    """
    with reading(path, *ZIPFILE), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # before any of them is read
    _check_members(members, path)
    with reading(path, *ZIPFILE), zipfile.ZipFile(path) as archive:
        flipped = archive.testzip()
    if flipped is not None:
        raise damaged(path, f"damaged (the checksum of {flipped!r} is wrong)")
    return {m.filename.partition("/")[2]: m.file_size for m in members}


def _check_members(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    remedy = f"Load it where it was made and save the weights: {SAVE_WEIGHTS}"
    # torch writes one folder around everything, named after the file
    names = {m.filename.partition("/")[2] for m in members}
    files = {name.rpartition("/")[2] for name in names} | {m.filename for m in members}
    if names & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in files:
        raise MintError(
            f"{path} is a torch.export program (.pt2): its graph cannot be pruned and loading "
            f"it can run code. Save the weights of the module it was made from: {SAVE_WEIGHTS}"
        )
    if "constants.pkl" in names or any(n.startswith("code/") for n in names):
        raise MintError(f"{path} is TorchScript, whose graph cannot be pruned. {remedy}")
    if "data.pkl" not in names:
        raise MintError(f"{path} is a zip archive without a PyTorch checkpoint in it. {remedy}")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise MintError(f"{path} is a compressed archive, which torch.save never writes. {remedy}")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise damaged(path, "an archive that unpacks to more than its size")
    if _ambiguous(members):
        raise damaged(path, "an archive that torch.save did not write: of two, or of several folders")


def _ambiguous(members: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether names are double, lead elsewhere, or the archive begins in the middle of its file."""
    names = [m.filename.casefold() for m in members]
    folders = {name.partition("/")[0] for name in names}
    return (
        len(set(names)) < len(names)
        or len(folders) > 1
        or any(".." in n.split("/") or n.startswith("/") or "\\" in n for n in names)
        or any(m.orig_filename != m.filename for m in members)
        or min(m.header_offset for m in members) > 0
    )
