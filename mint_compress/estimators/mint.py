"""MINT as it was published, on exact trees: conditional geometric mutual information in raw space.

For a child group, a parent group and the other parents of the layer: a third of the rows are real
points (child, parent, others); a second third gets its parents from the row of the last third that is
nearest in the others, which makes child and parent independent given the others, as far as a nearest
neighbour can; and 1 - R (m + k) / (2 m k) is reported, with R edges of the Euclidean minimum spanning
tree joining the m real and the k redrawn points.

References
----------
M. R. Ganesh, J. J. Corso, S. Yasaei Sekeh, "MINT: Deep network compression via mutual
information-based neuron trimming", ICPR 2020 (arXiv 2003.08472).
R. Sen, A. T. Suresh, K. Shanmugam, A. G. Dimakis, S. Shakkottai, "Model-powered conditional
independence test", NeurIPS 2017: the nearest-neighbour bootstrap.
"""

from __future__ import annotations

from torch import Tensor

from mint_compress.estimators.gmi import gmi
from mint_compress.progress import Progress


def mint(
    children: Tensor,
    parents: Tensor,
    *,
    child_groups: Tensor | None = None,
    parent_groups: Tensor | None = None,
    repeats: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """The paper's score of every child group and parent group, for comparison with it.

    It is :func:`mint_compress.estimators.gmi.gmi` with ``conditioning="raw"``, ``graph="mst"`` and no
    observation noise. Beyond a few conditioning columns it has no signal, whatever the number of rows
    a layer's activations can be drawn for (``docs/estimators.md``, measured).

    Where this differs from the published method: columns are standardised first, so that a channel's
    scale plays no part; estimates below 0 are reported as they are, not clamped, so that independent
    groups average to what they are; donors at the same distance take turns, where one donor for many
    rows would make copies that look like dependence; parents without any other group to condition on
    are compared on halves of the rows, as there is nothing to find a donor by.

    Parameters
    ----------
    children, parents
        ``(n, C)`` and ``(n, d)``, paired row by row. Several ``(n, n)`` float64 arrays are held at a time.
    child_groups, parent_groups
        ``(C,)`` and ``(d,)`` labels 0..Q-1 and 0..P-1; None: every column by itself.
    repeats
        Average over this many independent splits.
    seed
        Of the splits.
    progress
        Called with ("mint", pairs done, pairs in all), each repeat counting its pairs.

    Returns
    -------
    Tensor
        ``(Q, P)`` float64; the quantity lies in [0, 1), estimates may be negative.

    Raises
    ------
    MintError
        Samples as in :func:`mint_compress.estimators.samples.check_samples`, fewer than 9 rows.
    """

    def renamed(_: str, done: int, total: int) -> None:
        if progress:
            progress("mint", done, total)

    return gmi(
        children,
        parents,
        child_groups=child_groups,
        parent_groups=parent_groups,
        conditioning="raw",
        graph="mst",
        noise=0,
        repeats=repeats,
        seed=seed,
        progress=renamed,
    )
