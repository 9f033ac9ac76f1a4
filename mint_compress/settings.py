"""What can be said about the options before anything is loaded: bad input answers at once."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mint_compress.errors import MintError
from mint_compress.files import check_file, outputs

ESTIMATORS = ("gaussian", "gmi", "mint", "knn")
COSTS = ("params", "macs", "both")
PROVIDERS = ("auto", "cpu", "cuda")


def estimator_names() -> tuple[str, ...]:
    """The built-in estimators, then those of installed packages (entry points mint_compress.estimators)."""
    from importlib.metadata import entry_points

    added = {point.name for point in entry_points(group="mint_compress.estimators")}
    return (*ESTIMATORS, *sorted(added - set(ESTIMATORS)))


def check_options(
    *,
    model: object = None,
    data: object = None,
    ratio: float | None = None,
    macs_ratio: float | None = None,
    output: str | Path | None = None,
    plan: object = None,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    estimator: object = "gaussian",
    calibration_images: int | None = None,
    samples_per_class: int | None = None,
    groups: int = 0,
    upper_limit: float = 0.95,
    round_to: int = 8,
    cost: str = "both",
    epochs: int = 5,
    lr: float = 0.05,
    batch_size: int = 128,
    device: object = "auto",
    provider: str = "auto",
    threads: int = 1,
    bench_batch: int = 1,
    bench_seconds: float = 10.0,
    seed: int = 0,
    dry_run: bool = False,
    force: bool = False,
) -> None:
    """Refuse what is wrong whatever the network is; everything is read only, and no torch is needed.

    Parameters are those of ``compress``. A ``model``, ``data``, ``plan`` or ``estimator`` that is
    not a name (a module, a Data, a PruningPlan) is not looked at.

    Raises
    ------
    MintError
        For the first option that cannot work: the value and the remedy in one line.
    """
    _check_model(model)
    if ratio is None and macs_ratio is None and plan is None:
        raise MintError("No ratio given. Say which share of the parameters goes, for example --ratio 0.75.")
    if plan is not None and (ratio is not None or macs_ratio is not None):
        raise MintError("A plan has its own shares. Leave --ratio and --macs-ratio out, or the plan.")
    _check_share("ratio", ratio, "Give the share of the parameters that goes, for example 0.75.")
    _check_share("macs-ratio", macs_ratio, "Give the share of the MACs that goes, for example 0.5.")
    _check_share("upper-limit", upper_limit, "Give the share of a layer that may go at most.")
    _check_counts(
        least_0={"groups": groups, "epochs": epochs, "seed": seed},
        least_1={
            "round-to": round_to,
            "batch-size": batch_size,
            "threads": threads,
            "bench-batch": bench_batch,
        },
        default_if_none={"calibration-images": calibration_images, "samples-per-class": samples_per_class},
    )
    if batch_size == 1 and epochs:
        raise MintError("batch-size must be at least 2 to fine-tune, not 1: BatchNorm needs two images.")
    _check_positive("lr", lr)
    _check_positive("bench-seconds", bench_seconds)
    _check_choice("estimator", estimator, ESTIMATORS)
    _check_choice("cost", cost, COSTS)
    _check_choice("provider", provider, PROVIDERS)
    if isinstance(device, str) and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise MintError(f"Unknown device {device!r}. Choose from: auto, cpu, cuda, cuda:N.")
    _check_input(input_shape, mean, std)
    if mean is not None and data is None:
        raise MintError("mean and std are what data are normalised with, and there are none. Give --data.")
    if samples_per_class is not None and estimator == "gaussian":
        raise MintError("samples-per-class is for gmi, mint and knn; gaussian takes --calibration-images.")
    _check_data(data)
    if isinstance(plan, (str, Path)):
        check_file("plan", plan)
    if output is not None:
        _check_output(Path(output), model, dry_run=dry_run, force=force)


def check_sweep(
    *,
    output: Path | None,
    data: object,
    ratio: Sequence[float] | None,
    macs_ratio: Sequence[float] | None,
    estimator: Sequence[str],
    groups: Sequence[int],
    upper_limit: Sequence[float],
    samples_per_class: Sequence[int] | None,
    seed: Sequence[int],
    **common: Any,
) -> None:
    """Refuse a grid with a value that cannot work; ``common`` is what ``check_options`` takes.

    Raises
    ------
    MintError
        For the first one: the value and the remedy in one line.
    """
    if output is None or output.suffix != ".csv":
        raise MintError("A sweep writes a .csv file. Give its name, for example -o sweep.csv.")
    if not output.parent.is_dir():
        raise MintError(f"The folder {output.parent} does not exist. Create it first.")
    if data is None:
        raise MintError("A sweep compares accuracies, and so needs --data.")
    if not ratio and not macs_ratio:
        raise MintError("No ratios given. Say which shares go, for example --ratio 0.5,0.75.")
    grid = itertools.product(
        ratio or (None,), macs_ratio or (None,), estimator, groups, upper_limit,
        samples_per_class or (None,), seed,
    )  # fmt: skip
    for one, macs, name, blocks, limit, samples, number in grid:
        check_options(
            data=data, ratio=one, macs_ratio=macs, estimator=name, groups=blocks, upper_limit=limit,
            samples_per_class=None if name == "gaussian" else samples, seed=number, **common,
        )  # fmt: skip


def check_benchmark(
    *,
    provider: str = "auto",
    threads: int = 1,
    batch: int = 1,
    seconds: float = 10.0,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """Refuse benchmark settings that cannot work, before anything is loaded.

    Raises
    ------
    MintError
        For the first one: the value and the remedy in one line.
    """
    _check_choice("provider", provider, PROVIDERS)
    _check_counts(least_0={"seed": seed}, least_1={"threads": threads, "batch": batch}, default_if_none={})
    _check_positive("seconds", seconds)
    _check_input(input_shape, None, None)


def check_inspection(
    *,
    model: object = None,
    input_shape: Sequence[int] | None = None,
    upper_limit: float = 0.95,
    round_to: int = 8,
) -> None:
    """Refuse what cannot be inspected, before anything is loaded; parameters as of ``inspect_model``.

    Raises
    ------
    MintError
        For the first one: the value and the remedy in one line.
    """
    _check_model(model)
    _check_share("upper-limit", upper_limit, "Give the share of a layer that may go at most.")
    _check_counts(least_0={}, least_1={"round-to": round_to}, default_if_none={})
    _check_input(input_shape, None, None)


def _check_model(model: object) -> None:
    if isinstance(model, (str, Path)):
        check_file("model", model)


def _check_share(name: str, value: object, remedy: str) -> None:
    if value is None:
        return
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise MintError(f"{name} must lie between 0 and 1, not {value!r}. {remedy}")


def _check_counts(
    *, least_0: dict[str, object], least_1: dict[str, object], default_if_none: dict[str, object]
) -> None:
    given = {name: value for name, value in default_if_none.items() if value is not None}
    for least, values in ((0, least_0), (1, least_1 | given)):
        for name, value in values.items():
            if not isinstance(value, Integral) or not least <= int(value) < 2**63:
                raise MintError(f"{name} must be a whole number, at least {least}, not {value!r}.")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise MintError(f"{name} must be a positive number, not {value!r}.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value in choices:
        return
    if name == "estimator":
        # the entry points are read only when a name is not ours: they cost a walk over all packages
        choices = estimator_names()
        if value in choices:
            return
    raise MintError(f"Unknown {name} {value!r}. Choose from: {', '.join(choices)}.")


def _check_input(
    input_shape: Sequence[int] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    if input_shape is not None and (
        not input_shape or not all(isinstance(n, Integral) and n > 0 for n in input_shape)
    ):
        raise MintError(
            f"input-shape must be positive whole numbers without the batch, not {tuple(input_shape)!r}. "
            "For example 3,32,32."
        )
    if (mean is None) != (std is None):
        given, missing = ("mean", "std") if std is None else ("std", "mean")
        raise MintError(f"{given} is given without {missing}. Give both, one number per channel.")
    if mean is None or std is None:
        return
    if len(mean) != len(std) or not mean:
        raise MintError(f"mean has {len(mean)} values and std {len(std)}. Give one number per channel.")
    if not all(math.isfinite(m) for m in mean):
        raise MintError(f"mean must be finite numbers, not {tuple(mean)!r}.")
    if not all(0 < s < math.inf for s in std):
        raise MintError(f"std must be positive numbers, not {tuple(std)!r}.")
    if input_shape is not None and len(mean) not in (1, input_shape[0]):
        raise MintError(
            f"mean and std have {len(mean)} values, but input-shape {','.join(map(str, input_shape))} "
            f"has {input_shape[0]} channels. Give one number per channel."
        )


def _check_data(data: object) -> None:
    if not isinstance(data, str) or data == "digits" or ":" in data:
        return
    try:
        found = Path(data).exists()
    except (OSError, ValueError):
        found = False
    if not found:
        raise MintError(
            f"No such data: {data!r}. Give digits, an .npz file, a folder of class folders, "
            "cifar10:DIR or package.module:function."
        )


def _check_output(output: Path, model: object, *, dry_run: bool, force: bool) -> None:
    if output.name.startswith("."):
        raise MintError(f"Output {str(output)!r} has no name before the suffix, as in small{output.name}.")
    if not output.suffix or output.suffix == ".":
        raise MintError(f"Output {str(output)!r} has no suffix. Name the format, as in {output.name}.onnx.")
    if not output.parent.is_dir():
        raise MintError(f"Output folder {str(output.parent)!r} does not exist. Create it first.")
    if not os.access(output.parent, os.W_OK):
        raise MintError(f"Output folder {str(output.parent)!r} may not be written. Choose another one.")
    files = outputs(output)
    written = (files.plan,) if dry_run else (files.export, files.tensors, files.report)
    for path in written:
        if not os.path.lexists(path):
            continue
        if isinstance(model, (str, Path)) and path.exists() and path.samefile(model):
            raise MintError(f"Output {str(path)!r} is the model itself. Choose another name for -o.")
        if not force:
            raise MintError(f"{str(path)!r} exists already. Replace it with --force, or choose another name.")
        if path.is_dir():
            raise MintError(f"{str(path)!r} is a folder. Choose another name for -o.")
