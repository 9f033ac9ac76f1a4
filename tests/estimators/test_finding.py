"""What every estimator promises, and how one is found."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mint_compress import estimators
from mint_compress.errors import MintError
from mint_compress.estimators import Estimator, find_estimator
from mint_compress.estimators.gaussian import gaussian
from mint_compress.estimators.gmi import gmi
from mint_compress.estimators.knn import knn
from mint_compress.estimators.mint import mint
from mint_compress.estimators.parametric import parametric
from mint_compress.options import options_of
from mint_compress.settings import Scoring

# through as much noise as the command's default a link is seen in `gaussian` too, but is worth little
LITTLE_NOISE = partial(gaussian, noise=1e-2)
built_in = pytest.mark.parametrize("estimate", [LITTLE_NOISE, parametric, gmi, mint, knn])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_for(estimate: Estimator) -> int:
    """Raw-space conditioning is biased upwards, less so with more rows."""
    return 2400 if estimate is mint else 300


def linked(rows: int = 300) -> tuple[Tensor, Tensor]:
    """Four parents; child 0 hangs on parents 0 and 1, child 1 on nothing."""
    y = draw(0, rows, 4)
    return torch.cat([y[:, :2].sum(1, keepdim=True) + 0.2 * draw(1, rows, 1), draw(2, rows, 1)], 1), y


def test_names_are_those_the_command_line_offers() -> None:
    assert options_of(Scoring)["estimator"].choices == estimators.BUILT_IN
    assert find_estimator("gaussian") is gaussian
    assert find_estimator("gmi") is gmi
    assert find_estimator("mint") is mint
    assert find_estimator("knn") is knn


def test_built_in_estimators_fit_the_protocol() -> None:
    fitting: list[Estimator] = [gaussian, gmi, mint, knn]  # checked by the type checker
    assert fitting == [find_estimator(n) for n in estimators.BUILT_IN]
    other: Estimator = parametric
    assert other(*linked(9)[::-1], seed=1).shape == (4, 2)


def test_what_an_estimator_takes_is_known_without_torch() -> None:
    code = (
        "import sys; from mint_compress.estimators import BUILT_IN, uses_samples\n"
        "print([n for n in (*BUILT_IN, 'of_another_package') if uses_samples(n)], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gmi', 'mint', 'knn', 'of_another_package'] False"


@built_in
def test_links_are_seen_and_nothing_else(estimate: Estimator) -> None:
    x, y = linked(rows_for(estimate))
    found = estimate(x, y)
    assert found.shape == (2, 4) and found.dtype == torch.float64
    assert bool((found[0, :2] > 0.2).all())
    assert bool((found[0, 2:].abs() < 0.2).all()) and bool((found[1].abs() < 0.2).all())


@built_in
def test_labels_name_the_groups(estimate: Estimator) -> None:
    x, y = linked(rows_for(estimate))
    found = estimate(
        x, y, child_groups=torch.tensor([2, 0]), parent_groups=torch.tensor([1, 0, 1, 0]), seed=3
    )
    assert found.shape == (3, 2)
    assert not found[1].any()  # a group without columns
    assert bool((found[2] > 0.2).all()) and bool((found[0].abs() < 0.2).all())


@built_in
def test_constant_columns_say_nothing(estimate: Estimator) -> None:
    x, y = linked()
    x[:, 1], y[:, 3] = 0.1, -7.3
    found = estimate(x, y)
    assert not found[1].any() and not found[:, 3].any()
    assert bool((found[0, :2] > 0.2).all())
    assert not estimate(torch.zeros(50, 2), torch.zeros(50, 3)).any()


@built_in
def test_copied_rows_are_finite(estimate: Estimator) -> None:
    x, y = linked(40)
    assert bool(torch.isfinite(estimate(x.repeat(3, 1), y.repeat(3, 1))).all())


@built_in
def test_shuffled_pairing_shows_nothing(estimate: Estimator) -> None:
    x, y = linked()
    assert bool((estimate(x, y[draw(5, len(y)).argsort()]).abs() < 0.2).all())


@built_in
@pytest.mark.parametrize(
    "x, y, labels, message",
    [
        (
            torch.zeros(9, 2).fill_(float("nan")),
            torch.zeros(9, 3),
            None,
            "children hold NaN or infinite values",
        ),
        (torch.zeros(9, 2), torch.full((9, 3), float("inf")), None, "parents hold NaN or infinite values"),
        (torch.zeros(9), torch.zeros(9, 3), None, r"children must be \(rows, columns\), not \(9,\)"),
        (torch.zeros(9, 2), torch.zeros(8, 3), None, "children have 9 rows and parents 8"),
        (torch.zeros(9, 2), torch.zeros(9, 3), torch.tensor([0, 1]), "parent_groups must be 3 whole numbers"),
        (torch.zeros(9, 2), torch.zeros(9, 3), torch.tensor([0, -1, 1]), "parent_groups must be 3 whole"),
        (torch.zeros(9, 2), torch.zeros(9, 3), torch.zeros(3), "parent_groups must be 3 whole numbers"),
    ],
)
def test_bad_samples_are_refused(
    estimate: Estimator, x: Tensor, y: Tensor, labels: Tensor | None, message: str
) -> None:
    with pytest.raises(MintError, match=message):
        estimate(x, y, parent_groups=labels)


def package(folder: Path, name: str, target: str) -> None:
    """An installed package that offers one estimator, as far as importlib.metadata can tell."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mint_compress.estimators]\n{name} = {target}\n")


def test_other_packages_add_estimators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere_estimator.py").write_text(
        "def estimate(children, parents, **rest):\n    return 42\n"
    )
    package(tmp_path, "elsewhere", "elsewhere_estimator:estimate")
    package(tmp_path, "broken", "no_such_module_anywhere:estimate")
    found = find_estimator("elsewhere")
    assert found(torch.zeros(1, 1), torch.zeros(1, 1)) == 42
    with pytest.raises(MintError, match=r"Unknown estimator 'gim'. Choose from: gaussian, gmi, .*elsewhere"):
        find_estimator("gim")
    with pytest.raises(MintError, match=r"Estimator 'broken' .* cannot be loaded: ModuleNotFoundError"):
        find_estimator("broken")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(MintError, match=r"^Unknown estimator 'gim'. Choose from: gaussian, gmi"):
        find_estimator("gim")
