"""What an export that is right gives for a few samples, written beside it to be verified elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mint_compress.exporting.protocol import arrays, find_exporter
from mint_compress.exporting.samples import Samples
from mint_compress.files import samples_of, sha256_of, writing
from mint_compress.nn.io import Inputs
from mint_compress.reporting.records import Latency
from mint_compress.settings import Benchmark


@dataclass(frozen=True)
class Sampler:
    """What the samples of all exports of a run have in common.

    Attributes
    ----------
    few
        Real inputs, batch first.
    how
        To run the exports, as they were timed.
    parameters
        That were counted.
    machine
        Its name.
    """

    few: Inputs
    how: Benchmark
    parameters: int
    machine: str

    def beside(
        self, files: Sequence[Path], taken: Latency, tolerance: float, target: Path
    ) -> dict[Path, Path]:
        """Run an export, and write what it gives beside it.

        Parameters
        ----------
        files
            Of the export, itself first.
        taken
            Its latency.
        tolerance
            Largest difference elsewhere, as a share of the largest magnitude of an output.
        target
            Where the export is to go.

        Returns
        -------
        dict
            Where each of the files, and that of the samples, is to go.
        """
        session = find_exporter(files[0]).open(files[0], device=self.how.provider, threads=self.how.threads)
        given = arrays(session, self.few)
        found = Samples(
            given, tuple(session.run(given)), tuple(spec.name for spec in session.inputs),
            {file.name: sha256_of(file) for file in files}, self.parameters, tolerance, taken.median,
            session.provider, self.how.threads, self.how.batch, self.machine,
        )  # fmt: skip
        made = samples_of(files[0])
        with writing(samples_of(target)):
            found.write(made)
        return {**{file: target.with_name(file.name) for file in files}, made: samples_of(target)}
