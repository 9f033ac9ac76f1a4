"""Samples that are kept beside an export, so that any machine can check it with the runtime alone.

Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mint_compress.errors import MintError
from mint_compress.exporting.session import Array

FORMAT = 1
COUNT = 2
"""Samples that are kept."""


@dataclass(frozen=True)
class Samples:
    """What an export must give, and what it is and was.

    Attributes
    ----------
    inputs, outputs
        One batch, in the order of the file's inputs and outputs.
    names
        Of the inputs.
    sha256
        File name -> hash of every file of the export, itself first.
    parameters
        That were counted in it.
    tolerance
        Largest difference, as a share of the largest magnitude of an output.
    median_ms
        Latency for one run where it was made.
    provider, threads, batch, machine
        Of that run.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    names: tuple[str, ...]
    sha256: dict[str, str]
    parameters: int
    tolerance: float
    median_ms: float
    provider: str
    threads: int
    batch: int
    machine: str

    def write(self, path: Path) -> None:
        """As an .npz without pickles."""
        arrays = {f"input_{i}": x for i, x in enumerate(self.inputs)}
        arrays |= {f"output_{i}": x for i, x in enumerate(self.outputs)}
        facts = {key: value for key, value in asdict(self).items() if key not in ("inputs", "outputs")}
        with path.open("wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps({"format": FORMAT, **facts})), **arrays)  # type: ignore[arg-type]

    @staticmethod
    def read(path: Path) -> Samples:
        """What :meth:`write` wrote.

        Raises
        ------
        MintError
            There is no such file, it is damaged, or of another version.
        """
        if not path.is_file():
            raise MintError(f"No {path.name} beside the export, with what it must give. Copy it there.")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            version = facts.pop("format")
            names = tuple(facts.pop("names"))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:  # NumPy's and zipfile's
            raise MintError(f"{path} is damaged ({error}). Copy it again from where it was made.") from error
        if version != FORMAT:
            raise MintError(f"{path} has format {version}, and {FORMAT} is read. Update mint-compress.")
        inputs, outputs = (_in_order(arrays, prefix) for prefix in ("input", "output"))
        return Samples(inputs=inputs, outputs=outputs, names=names, **facts)


def _in_order(arrays: dict[str, Array], prefix: str) -> tuple[Array, ...]:
    names = [name for name in arrays if name.startswith(f"{prefix}_")]
    return tuple(arrays[f"{prefix}_{i}"] for i in range(len(names)))
