"""Slow, obvious oracles: what the fast code is compared with."""

import torch
from torch import Tensor


def kruskal(distances: Tensor) -> set[tuple[int, int]]:
    """Edges of the minimum spanning tree, compared by (weight, lower index, higher index)."""
    nodes = len(distances)
    parts = [{node} for node in range(nodes)]
    edges = set()
    pairs = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    for i, j in sorted(pairs, key=lambda e: (float(distances[e]), *e)):
        one, other = (next(p for p in parts if node in p) for node in (i, j))
        if one is not other:
            parts.remove(other)
            one |= other
            edges.add((i, j))
    return edges


def crossing(edges: set[tuple[int, int]], labels: Tensor) -> int:
    return sum(bool(labels[i] != labels[j]) for i, j in edges)


def residual_covariance(children: Tensor, parents: Tensor) -> Tensor:
    """Of the children, over n, after least squares on the parents and a constant."""
    design = torch.cat([torch.ones(len(parents), 1, dtype=parents.dtype), parents], 1)
    left: Tensor = children - design @ torch.linalg.lstsq(design, children, driver="gelsd").solution
    return left.T @ left / len(left)


def gaussian_pair(children: Tensor, parents: Tensor, own: list[int], noise: float) -> Tensor:
    """Plug-in nats of one child group about the parent columns ``own``, given the other parents."""
    added = (noise * children.var(0, correction=0)).diag()
    others = [p for p in range(parents.shape[1]) if p not in own]
    without = residual_covariance(children, parents[:, others]) + added
    with_all = residual_covariance(children, parents) + added
    return 0.5 * (torch.logdet(without) - torch.logdet(with_all))


def conditional_information(covariance: Tensor, x: list[int], y: list[int], z: list[int]) -> float:
    """I(x; y | z) in nats of jointly Gaussian variables of that covariance."""

    def logdet(columns: list[int]) -> float:
        return float(torch.logdet(covariance[columns][:, columns])) if columns else 0.0

    return 0.5 * (logdet(x + z) + logdet(y + z) - logdet(z) - logdet(x + y + z))


def unexplained(covariance: Tensor, weight: Tensor, kept: list[int]) -> Tensor:
    """Variance of each child w' x that the parents in ``kept`` do not explain."""
    refit = least_squares(covariance, weight, kept)
    error = weight - refit
    return ((covariance @ error) * error).sum(0)


def least_squares(covariance: Tensor, weight: Tensor, kept: list[int]) -> Tensor:
    """The map on ``kept`` nearest to ``weight``, with zeros elsewhere."""
    refit = torch.zeros_like(weight)
    if kept:
        refit[kept] = torch.linalg.solve(covariance[kept][:, kept], covariance[kept] @ weight)
    return refit


def elimination(
    problems: list[tuple[Tensor, Tensor, Tensor]], units: int, noise: float
) -> tuple[list[int], list[float]]:
    """Backward elimination where every candidate is scored by a fresh refit.

    ``problems`` are (covariance, weight, column_units). Returns the order and the nats per step.
    """

    def lost(removed: list[int]) -> float:
        total = 0.0
        for covariance, weight, owner in problems:
            kept = [c for c in range(len(owner)) if int(owner[c]) not in removed]
            variance = ((covariance @ weight) * weight).sum(0)
            total += float(0.5 * (1 + unexplained(covariance, weight, kept) / (noise * variance)).log().sum())
        return total

    order: list[int] = []
    losses: list[float] = []
    while len(order) < units:
        before = lost(order)
        left = [u for u in range(units) if u not in order]
        steps = [lost([*order, u]) - before for u in left]
        best = min(range(len(left)), key=steps.__getitem__)
        order.append(left[best])
        losses.append(steps[best])
    return order, losses


def mint_regime(nats: float, seed: int, rows: int = 2500, others: int = 508) -> tuple[Tensor, Tensor, Tensor]:
    """Samples at MINT's sizes: four children, their own four parents, and ``others`` parents besides.

    The children have ``nats`` of conditional mutual information with parent group 0 given the other
    parents (groups of 4 from 1 on). Both sides depend linearly on the others as well, so that half
    of their variance is common cause. Jointly Gaussian, float32.

    Returns children ``(rows, 4)``, parents ``(rows, 4 + others)``, parent_groups ``(4 + others,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randn(rows, others, generator=generator)
    cause = rest @ torch.randn(others, 8, generator=generator) / max(others, 1) ** 0.5
    own, left = torch.randn(rows, 8, generator=generator).chunk(2, 1)
    # four independent links, each of nats / 4 = -1/2 log(1 - rho^2)
    rho = (1 - torch.tensor(-nats / 2).exp()) ** 0.5
    children = cause[:, :4] + rho * own + (1 - rho**2) ** 0.5 * left
    parents = torch.cat([cause[:, 4:] + own, rest], 1)
    return children, parents, torch.arange(4 + others) // 4
