"""What others offer for the same quantities, called at its best: one pair per call, numpy arrays in.

Each is imported when it is called; ``pip install -e .[bench]`` brings all of them.
"""

from __future__ import annotations

import math
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# a script's own folder comes first on the path: what a peer imports must not be looked for in here
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

PACKAGES = ("npeet-plus", "infomeasure", "tigramite", "scipy")


def installed() -> dict[str, str | None]:
    """Version of each peer, None where it is missing."""

    def find(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: find(package) for package in PACKAGES}


def npeet(x: Array, y: Array, z: Array, *, neighbours: int) -> float:
    """Nats, from x ``(n, a)`` and y ``(n, b)`` given z ``(n, c)``, where c may be 0."""
    estimate = import_module("npeet_plus").mi
    return float(estimate(x, y, z if z.shape[1] else None, k=neighbours, base=math.e))


def infomeasure(x: Array, y: Array, z: Array, *, neighbours: int) -> float:
    """As :func:`npeet`; without the package's own noise, which it draws in a loop over the rows."""
    package = import_module("infomeasure")
    settings: dict[str, Any] = dict(approach="ksg", k=neighbours, noise_level=0, base="e")
    if z.shape[1]:
        return float(package.conditional_mutual_information(x, y, cond=z, **settings))
    return float(package.mutual_information(x, y, **settings))


def tigramite(x: Array, y: Array, z: Array, *, neighbours: int) -> float:
    """As :func:`npeet`; on one thread, and without a significance test."""
    make = import_module("tigramite.independence_tests.cmiknn").CMIknn
    test = make(knn=neighbours, transform="standardize", workers=1, significance="fixed_thres")
    parts = np.repeat([0, 1, 2], [part.shape[1] for part in (x, y, z)])
    return float(test.get_dependence_measure(np.concatenate([x, y, z], 1).T, parts))


def spanning_tree(distances: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ends of the minimum spanning tree's edges by scipy.sparse.csgraph, from a dense matrix.

    scipy takes a zero for no edge, so 1 is added to every distance: that changes no comparison.
    """
    shifted = distances + 1
    np.fill_diagonal(shifted, 0)
    tree = import_module("scipy.sparse.csgraph").minimum_spanning_tree(shifted).tocoo()
    return tree.row, tree.col


def spanning_tree_of_points(points: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same from ``(N, width)`` points, their Euclidean distances included."""
    return spanning_tree(import_module("scipy.spatial.distance").cdist(points, points))


def published(x: Array, y: Array, z: Array, *, seed: int) -> float:
    """MINT's conditional geometric mutual information of one pair, as published, on scipy.

    Thirds of the rows are real pairs, null pairs, and donors of the null pairs' y by nearest z; the
    statistic is Friedman and Rafsky's on the minimum spanning tree of all of them in (x, y, z). Unlike
    the released code, children and parents come from the same rows, and an edge joins its own ends.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    third = len(x) // 3
    real, null, donors = order[:third], order[third : 2 * third], order[2 * third :]
    nearest = import_module("scipy.spatial.distance").cdist(z[null], z[donors]).argmin(1)
    rows = np.concatenate([real, null])
    redrawn = np.concatenate([y[real], y[donors[nearest]]])
    one, other = spanning_tree_of_points(np.concatenate([x[rows], redrawn, z[rows]], 1))
    crossing = int(np.count_nonzero((one < third) != (other < third)))
    return 1 - crossing * 2 * third / (2 * third * third)
