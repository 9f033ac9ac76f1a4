"""The picture of the README, out of the rows of an experiment: accuracy against parameters removed.

python examples/picture.py writes docs/images/accuracy-light.svg and accuracy-dark.svg.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "examples/results/cifar10_vgg16.json"
CURVES = {
    ("gaussian, backward", "global"): "mint-compress",
    ("gaussian, backward", "global, MACs of uniform"): "mint-compress, with as many MACs gone as in L1",
    ("L2 magnitude", "global"): "L2 magnitude, same repair",
    ("L1 magnitude", "uniform"): "L1 magnitude, same repair",
}
"""(criterion, allocation) of the rows that are drawn, and their names in the picture."""
INKS = {
    "light": ("#ffffff", "#24292f", ("#0969da", "#54aeff", "#bc4c00", "#8c6d1f")),
    "dark": ("#0d1117", "#e6edf3", ("#58a6ff", "#a5d6ff", "#f0883e", "#d4b55e")),
}
"""Page, writing and curves. The page is painted: the picture can be read wherever it is shown."""
STEADY = {"svg.hashsalt": "mint-compress", "svg.fonttype": "none"}
"""The same rows make the same file, and its words stay words."""

Points = dict[str, list[tuple[float, float]]]


def points(path: Path) -> tuple[float, Points]:
    """The original's accuracy, and of every curve (removed, accuracy after the repair), in percent."""
    rows = [row for row in json.loads(path.read_text())["rows"] if not row["epochs"] and row["repair"]]
    found: Points = {
        name: sorted(
            (100 * row["removed"], 100 * row["accuracy"]["repaired"])
            for row in rows
            if (row["criterion"], row["allocation"]) == which
        )
        for which, name in CURVES.items()
    }
    (original,) = {100 * row["accuracy"]["original"] for row in rows}
    return original, found


def draw(original: float, curves: Points, theme: str, path: Path) -> None:
    """One theme's picture."""
    page, ink, colours = INKS[theme]
    with matplotlib.rc_context(STEADY | {"text.color": ink, "axes.labelcolor": ink, "font.size": 10}):
        figure = Figure(figsize=(7.2, 4), layout="constrained", facecolor=page)
        axes = figure.add_subplot(facecolor=page)
        axes.axhline(original, color=ink, linestyle=":", label=f"the original, {original:.2f}")
        for (name, line), colour, marker in zip(curves.items(), colours, "os^D", strict=True):
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, label=name)
        for removed, accuracy in next(iter(curves.values())):
            axes.annotate(
                f"{accuracy:.2f}", (removed, accuracy), (0, -14), textcoords="offset points", ha="center"
            )
        axes.set_xlabel("parameters removed, %")
        axes.set_ylabel("accuracy without training, %")
        axes.set_title("VGG16 on CIFAR-10: removed and repaired, not trained", color=ink, fontsize=11)
        axes.tick_params(colors=ink)
        axes.grid(color=ink, alpha=0.15)
        for spine in axes.spines.values():
            spine.set_color(ink)
        axes.legend(facecolor=page, edgecolor="none", labelcolor=ink, fontsize=9, loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=ROWS)
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "docs/images")
def main(results: Path, output: Path) -> None:
    """Draw the picture for light and for dark pages."""
    original, curves = points(results)
    for theme in INKS:
        draw(original, curves, theme, output / f"accuracy-{theme}.svg")


if __name__ == "__main__":
    main()
