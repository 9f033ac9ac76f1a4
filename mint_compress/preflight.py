"""What can be refused before anything is loaded: files that are not there, outputs that are in the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_compress.errors import MintError
from mint_compress.files import Outputs, check_file, hidden_folder, outputs, parts_of, placing_mark
from mint_compress.settings import Budget, Export, Settings, combinations


def check_run(
    model: object,
    data: object,
    settings: Settings,
    *,
    plan: object = None,
    output: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
) -> Outputs | None:
    """Refuse what is wrong whatever the network is; everything is read only, and no torch is needed.

    Parameters are those of ``compress``. A ``model``, ``data`` or ``plan`` that is not a name (a module,
    a Data, a PruningPlan) is not looked at.

    Returns
    -------
    Outputs or None
        The files that belong to the output, if there is one.

    Raises
    ------
    MintError
        For the first thing that cannot work: the value and the remedy in one line.
    """
    check_model(model)
    _check_goals(
        settings.budget, planned=plan is not None, measured=data is not None, exported=output is not None
    )
    if settings.normalisation.mean is not None and data is None:
        raise MintError("mean and std are what data are normalised with, and there are none. Give --data.")
    if settings.export.int8 and data is None:
        raise MintError("int8 takes the ranges of activations from real images. Give --data as well.")
    if settings.export.fp16 and data is None:
        raise MintError("fp16 is measured on test data, and there are none. Give --data as well.")
    _check_data(data)
    if isinstance(plan, (str, os.PathLike)):
        check_file("plan", os.fspath(plan))
    if output is None:
        if resume:
            raise MintError("To resume, name the output of the run that was interrupted, as in small.onnx.")
        return None
    _check_output(Path(output), model, settings.export, dry_run=dry_run, force=force, resume=resume)
    return outputs(Path(output))


def _check_goals(budget: Budget, *, planned: bool, measured: bool, exported: bool) -> None:
    """What is asked for: something, and what can be told of a run with such data and such an output."""
    shares = budget.ratio, budget.macs_ratio
    if not planned and shares == (None, None) and not budget.timed and budget.max_drop is None:
        raise MintError("No ratio given. Say which share of the parameters goes, for example --ratio 0.75.")
    if planned and (shares != (None, None) or budget.timed):
        raise MintError(
            "A plan has its own shares. Leave --ratio, --macs-ratio, --speedup and --latency out, or the "
            "plan."
        )
    if budget.max_drop is not None and not measured:
        raise MintError("max-drop is measured on validation data, and there are none. Give --data as well.")
    if not planned and budget.price == "latency" and not exported:
        raise MintError("Latency is measured on the export. Name one, as in -o small.onnx.")


def check_sweep(
    model: object,
    data: object,
    settings: Settings,
    grid: Mapping[str, Sequence[Any]],
    output: str | os.PathLike[str] | None,
) -> None:
    """Refuse a grid with a value that cannot work, as :func:`check_run` does for one run.

    Raises
    ------
    MintError
        For the first one: the value and the remedy in one line.
    """
    path = None if output is None else Path(output)
    if path is None or path.suffix != ".csv":
        given = "" if path is None else f", not {path.name!r}"
        raise MintError(f"A sweep writes a .csv file{given}. Give its name, for example -o sweep.csv.")
    if not path.parent.is_dir():
        raise MintError(f"The folder {path.parent} does not exist. Create it first.")
    if data is None:
        raise MintError("A sweep compares what is measured, and so needs --data.")
    if not grid.get("ratio") and not grid.get("macs_ratio"):
        raise MintError("No ratios given. Say which shares go, for example --ratio 0.5,0.75.")
    for one in combinations(settings, grid):
        check_run(model, data, one)


def check_model(model: object) -> None:
    """Refuse the path of a model at which there is no file.

    Raises
    ------
    MintError
        There is none, or it may not be read.
    """
    if isinstance(model, (str, os.PathLike)):
        check_file("model", os.fspath(model))


def _check_data(data: object) -> None:
    if not isinstance(data, str) or data == "digits" or ":" in data:
        return
    try:
        found = Path(data).exists()
    except (OSError, ValueError):  # a name too long for the file system, or one with a null byte
        found = False
    if not found:
        raise MintError(
            f"No such data: {data!r}. Give digits, an .npz file, a folder of class folders, images:DIR, "
            "cifar10:DIR or package.module:function."
        )


def _check_output(
    output: Path, model: object, export: Export, *, dry_run: bool, force: bool, resume: bool
) -> None:
    if output.name.startswith("."):
        raise MintError(f"Output {str(output)!r} has no name before the suffix, as in small{output.name}.")
    if not output.suffix or output.suffix == ".":
        raise MintError(f"Output {str(output)!r} has no suffix. Name the format, as in {output.name}.onnx.")
    if not output.parent.is_dir():
        raise MintError(f"Output folder {str(output.parent)!r} does not exist. Create it first.")
    if not os.access(output.parent, os.W_OK):
        raise MintError(f"Output folder {str(output.parent)!r} may not be written. Choose another one.")
    files = outputs(output)
    exports = (*parts_of(files.export), files.samples)
    if export.int8:
        exports += (*parts_of(files.int8), files.int8_samples)
    if export.fp16:
        exports += (*parts_of(files.fp16), files.fp16_samples)
    written = (files.plan,) if dry_run else (*exports, files.tensors, files.report, files.page)
    # a run that was killed while it put its files there may replace them
    force = force or (resume and placing_mark(hidden_folder(written[0])).exists())
    for path in written:
        if not os.path.lexists(path):
            continue
        if isinstance(model, (str, os.PathLike)) and path.exists() and path.samefile(model):
            raise MintError(f"Output {str(path)!r} is the model itself. Choose another name for -o.")
        if not force:
            raise MintError(f"{str(path)!r} exists already. Replace it with --force, or choose another name.")
        if path.is_dir():
            raise MintError(f"{str(path)!r} is a folder. Choose another name for -o.")
