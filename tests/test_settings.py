import math
from pathlib import Path
from typing import Any

import pytest

from mint_compress.errors import MintError
from mint_compress.files import outputs
from mint_compress.options import Option, options_of
from mint_compress.preflight import check_run, check_sweep
from mint_compress.settings import GRID, Benchmark, Budget, Scoring, Settings, combinations, groups, sections


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    return path


def check(model: object = None, **given: Any) -> None:
    """What ``compress`` checks first."""
    files = {
        name: given.pop(name) for name in ("data", "plan", "output", "dry_run", "force") if name in given
    }
    check_run(model, files.pop("data", None), Settings.of(**given), **files)


def test_a_grid_may_hold_samples_for_those_estimators_that_look_at_them(model: Path, tmp_path: Path) -> None:
    grid = {"ratio": (0.5,), "estimator": ("gaussian", "gmi"), "samples_per_class": (20, 30)}
    check_sweep(model, "digits", Settings.of(upper_limit=0.9), grid, tmp_path / "out.csv")
    rows = list(combinations(Settings(), {**grid, "ratio": (0.3, 0.5), "blocks": (0, 2)}))
    assert len(rows) == len(set(rows)) == 2 * 2 + 2 * 2 * 2
    assert {r.scoring.samples_per_class for r in rows if not r.scoring.takes_samples} == {None}
    assert [r.budget.ratio for r in rows[:2]] == [0.3, 0.5]
    with pytest.raises(TypeError, match="'lr' is not swept over"):
        list(combinations(Settings(), {"lr": (0.1,)}))


def test_the_defaults_with_a_ratio_are_fine(model: Path, tmp_path: Path) -> None:
    check(model, ratio=0.5, output=tmp_path / "out.onnx")
    check(str(model), plan=model)
    check(object(), ratio=0.5, data=object())
    check(model, ratio=0.5, batch_size=1, epochs=0)


def test_options_by_name_are_the_settings() -> None:
    one = Settings.of(
        ratio=0.5, estimator="gmi", samples_per_class=9, bench_batch=4, ignore="stem", mean=[0.5], std=[2]
    )
    assert one == Settings(
        budget=Budget(0.5),
        scoring=Scoring(estimator="gmi", samples_per_class=9),
        benchmark=Benchmark(batch=4),
    ).replace(ignore=("stem",), mean=(0.5,), std=(2,))
    assert Settings.of(**one.flat()) == one
    assert Settings.of(groups=4) == Settings.of(blocks=4)  # the paper's word
    with pytest.raises(TypeError, match="There is no option 'ration'"):
        Settings.of(ration=0.5)


def test_no_option_is_said_twice_or_left_out_of_the_help() -> None:
    names = [one.name for kind in groups().values() for one in options_of(kind).values()]
    assert len(names) == len(set(names)) and set(GRID) <= set(names)
    listed = [one.name for several in sections().values() for one in several]
    arguments = ["plan", "data", "output", "dry_run", "force", "resume", "json", "quiet"]
    assert sorted(listed) == sorted(names + arguments)
    assert all(
        isinstance(one, Option) and one.help.endswith(".")
        for several in sections().values()
        for one in several
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 1.5}, "ratio must lie between 0 and 1, not 1.5."),
        ({"ratio": 0}, "ratio must lie between 0 and 1, not 0."),
        ({"ratio": 1}, "ratio must lie between 0 and 1, not 1."),
        ({"ratio": -0.1}, "ratio must lie between 0 and 1, not -0.1."),
        ({"ratio": math.nan}, "ratio must lie between 0 and 1, not nan."),
        ({"ratio": "0.5"}, "ratio must lie between 0 and 1, not '0.5'."),
        ({"ratio": None}, "No ratio given."),
        ({"upper_limit": 1.5}, "upper-limit must lie between 0 and 1, not 1.5."),
        ({"upper_limit": 0}, "upper-limit must lie between 0 and 1, not 0."),
        ({"round_to": 0}, "round-to must be a whole number, at least 1, not 0."),
        ({"round_to": 2.5}, "round-to must be a whole number, at least 1, not 2.5."),
        ({"blocks": -1}, "blocks must be a whole number, at least 0, not -1."),
        ({"epochs": -1}, "epochs must be a whole number, at least 0, not -1."),
        ({"seed": -1}, "seed must be a whole number, at least 0, not -1."),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"batch_size": 1}, "batch-size must be at least 2 to fine-tune, not 1"),
        (
            {"plan": "model.pt"},
            "A plan has its own shares. Leave --ratio, --macs-ratio, --speedup and --latency out",
        ),
        ({"batch_size": 0}, "batch-size must be a whole number, at least 1, not 0."),
        ({"threads": 0}, "threads must be a whole number, at least 1, not 0."),
        ({"bench_batch": 0}, "bench-batch must be a whole number, at least 1, not 0."),
        ({"calibration_images": 0}, "calibration-images must be a whole number, at least 1, not 0."),
        ({"samples_per_class": 0}, "samples-per-class must be a whole number, at least 1, not 0."),
        ({"lr": 0.0}, "lr must be a positive number, not 0.0."),
        ({"lr": math.inf}, "lr must be a positive number, not inf."),
        ({"bench_seconds": 0}, "bench-seconds must be a positive number, not 0."),
        ({"estimator": "gim"}, "Unknown estimator 'gim'. Choose from: gaussian, gmi"),
        ({"cost": "flops"}, "Unknown cost 'flops'. Choose from: params, macs, both, latency."),
        ({"provider": "tpu"}, "Unknown provider 'tpu'. Choose from: auto, cpu, cuda."),
        ({"device": "gpu"}, "Unknown device 'gpu'. Choose from: auto, cpu, cuda, cuda:N."),
        ({"input_shape": (3, 0, 32)}, "input-shape must be positive whole numbers"),
        ({"input_shape": ()}, "input-shape must be positive whole numbers"),
        ({"mean": (0.5,)}, "mean is given without std."),
        ({"std": (0.5,)}, "std is given without mean."),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, "mean has 2 values and std 1."),
        ({"mean": (math.nan,), "std": (1.0,)}, "mean must be finite numbers"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must be positive numbers"),
        (
            {"mean": (0.5, 0.5), "std": (1.0, 1.0), "input_shape": (3, 8, 8)},
            "mean and std have 2 values, but",
        ),
        ({"mean": (0.5,), "std": (1.0,)}, "mean and std are what data are normalised with"),
        ({"samples_per_class": 5}, "samples-per-class is for gmi, mint and knn"),
        ({"data": "nowhere.npz"}, "No such data: 'nowhere.npz'."),
        ({"data": "a" * 5000}, "No such data: "),
        ({"plan": "none.plan.json", "ratio": None}, "No such plan file: 'none.plan.json'."),
    ],
)
def test_what_cannot_work_is_named_with_its_value(model: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MintError) as caught:
        check(**{"model": model, "ratio": 0.5, **given})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", ["digits", "cifar10:/anywhere", "package.module:function"])
def test_data_that_only_loading_can_judge_is_let_through(model: Path, data: str) -> None:
    check(model, ratio=0.5, data=data)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_device_names(model: Path, device: str) -> None:
    check(model, ratio=0.5, device=device)


def test_the_model_is_a_regular_file_or_a_link_to_one(tmp_path: Path, model: Path) -> None:
    with pytest.raises(MintError, match="No such model file"):
        check(tmp_path / "absent.pt", ratio=0.5)
    with pytest.raises(MintError, match="not a regular file"):
        check(tmp_path, ratio=0.5)
    with pytest.raises(MintError, match="No such model file"):
        check("nul\0l.pt", ratio=0.5)
    link = tmp_path / "link.pt"
    link.symlink_to(model)
    check(link, ratio=0.5)
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(MintError, match="No such model file"):
        check(link, ratio=0.5)


def test_the_output_needs_a_suffix_and_a_folder(tmp_path: Path, model: Path) -> None:
    for name in ("out", "out."):
        with pytest.raises(MintError, match="has no suffix"):
            check(model, ratio=0.5, output=tmp_path / name)
    with pytest.raises(MintError, match="does not exist"):
        check(model, ratio=0.5, output=tmp_path / "none" / "out.onnx")


@pytest.mark.parametrize("name", ["out.onnx", "out.verify.npz", "out.safetensors", "out.json", "out.html"])
def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path, model: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    given: dict[str, Any] = {"model": model, "ratio": 0.5, "output": tmp_path / "out.onnx"}
    with pytest.raises(MintError, match=f"{name}' exists already"):
        check(**given)
    check(**given, force=True)
    # a dry run writes none of them
    check(**given, dry_run=True)


def test_a_dry_run_replaces_a_plan_only_by_force(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out.plan.json").write_text("mine")
    given: dict[str, Any] = {"model": model, "ratio": 0.5, "output": tmp_path / "out.onnx"}
    with pytest.raises(MintError, match=r"out\.plan\.json' exists already"):
        check(**given, dry_run=True)
    check(**given, dry_run=True, force=True)
    check(**given)


def test_even_by_force_neither_the_model_nor_a_folder_is_replaced(tmp_path: Path) -> None:
    model = tmp_path / "small.safetensors"
    model.write_bytes(b"x")
    with pytest.raises(MintError, match="is the model itself"):
        check(model, ratio=0.5, output=tmp_path / "small.onnx", force=True)
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(MintError, match="is a folder"):
        check(model, ratio=0.5, output=tmp_path / "dir.onnx", force=True)


def test_outputs_share_the_stem() -> None:
    assert [str(path) for path in outputs("a/b.v2.onnx")] == [
        "a/b.v2.onnx",
        "a/b.v2.verify.npz",
        "a/b.v2.int8.onnx",
        "a/b.v2.int8.verify.npz",
        "a/b.v2.fp16.onnx",
        "a/b.v2.fp16.verify.npz",
        "a/b.v2.safetensors",
        "a/b.v2.json",
        "a/b.v2.html",
        "a/b.v2.plan.json",
    ]


def test_benchmark_settings() -> None:
    Benchmark(provider="auto", threads=1, batch=1, seconds=0.5)
    for wrong in ({"provider": "x"}, {"threads": 0}, {"batch": 0}, {"seconds": -1.0}):
        with pytest.raises(MintError, match=f"{next(iter(wrong))}"):
            Benchmark(**wrong)  # type: ignore[arg-type]
