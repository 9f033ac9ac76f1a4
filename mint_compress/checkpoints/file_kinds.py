"""Whether a path is a file that can be read at all, and what kind of file it is, by its content."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from mint_compress.checkpoints.damage import SAVE_WEIGHTS
from mint_compress.errors import MintError


def regular_file(path: Path) -> Path:
    """``path``, if it is a readable regular file or a link to one; a MintError otherwise."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise MintError(f"{path} is a link to {os.readlink(path)}, which does not exist.") from None
        raise MintError(f"No such file: {path}. Check the name and the folder.") from None
    # the operating system; Python itself refuses a name with a zero byte in it
    except (OSError, ValueError) as error:
        raise MintError(f"Cannot read {path}: {error}.") from None
    if stat.S_ISDIR(mode):
        raise MintError(f"{path} is a folder. Give the checkpoint file inside it (.pt, .pth, .safetensors).")
    if not stat.S_ISREG(mode):
        raise MintError(f"{path} is not a regular file. Copy what it delivers into a file first.")
    if not os.access(path, os.R_OK):
        raise MintError(f"{path} may not be read by this user. Change its permissions.")
    return path


def file_kind(path: Path) -> str:
    """'zip', 'safetensors' or 'pickle' (before PyTorch 1.6), by content; a MintError for anything else."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        raise MintError(f"{path} is empty. Download or save it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    if head.startswith(b"version https://git-lfs"):
        raise MintError(f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise MintError(f"{path} is a web page, not a checkpoint. Download the file behind the page.")
    if path.suffix == ".onnx":
        raise MintError(f"{path} is an ONNX model, which cannot be pruned. Give the PyTorch checkpoint.")
    raise MintError(
        f"{path} is not a PyTorch checkpoint (it begins with {head[:8]!r}). Save one: {SAVE_WEIGHTS}"
    )
