"""fp16 beside float, where the runtime computes in it: on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from mint_compress.errors import MintError
from mint_compress.exporting.protocol import ExportResult, find_exporter
from mint_compress.exporting.quantizing import Judged, figures
from mint_compress.files import writing
from mint_compress.progress import Progress
from mint_compress.reporting.records import HalfSideBySide
from mint_compress.settings import Benchmark

FP16_TOLERANCE = 0.01
"""Difference between two machines: ten bits of the mantissa, and many layers."""


class Halver(Protocol):
    """An exporter that can make a file in half precision of one of its own."""

    @property
    def half_providers(self) -> tuple[str, ...]:
        """Providers that are faster in half precision; others compute in float what is stored in half."""

    def halve(self, path: Path, output: Path) -> None:
        """Write ``output``."""


def find_halver(path: Path) -> Halver:
    """The exporter for ``path``, which must know fp16.

    Raises
    ------
    MintError
        It does not.
    """
    exporter = find_exporter(path)
    if not callable(getattr(exporter, "halve", None)):
        raise MintError(f"The exporter {exporter.name} does not write fp16. Leave --fp16 out.")
    return cast("Halver", exporter)


def why_not_halved(path: Path, provider: str) -> str | None:
    """Why a file in half precision is of no use there; None where it is."""
    wanted = find_halver(path).half_providers
    if provider in wanted:
        return None
    return f"fp16 was left out: it is for {' or '.join(wanted)}, and the export runs on {provider} here"


def halved(
    original: ExportResult,
    pruned: ExportResult,
    output: Path,
    judged: Judged,
    how: Benchmark,
    progress: Progress | None = None,
) -> HalfSideBySide:
    """Write ``output``, the pruned export in half precision, and hold it against the others.

    Raises
    ------
    MintError
        The runtime cannot convert one of the files.
    """
    tell = progress or (lambda *_: None)
    beside = original.path.with_name(output.name)
    for done, (before, after) in enumerate(((original.path, beside), (pruned.path, output))):
        tell("fp16", done, 2)
        with writing(after):
            find_halver(before).halve(before, after)
    tell("fp16", 2, 2)
    paths = {
        "float_original": original.path, "float_pruned": pruned.path,
        "fp16_original": beside, "fp16_pruned": output,
    }  # fmt: skip
    return HalfSideBySide(**figures(paths, judged, how, progress))
